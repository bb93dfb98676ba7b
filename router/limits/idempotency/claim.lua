-- Claims an idempotency id for one call, or returns the state of the call that has it.
--
-- KEYS  1 entry: a hash of fingerprint, owner, and state in_flight | completed | not_kept, with reply
-- ARGV  1 fingerprint of the request, 2 owner: the lease id of this call, 3 its lease in ms
--
-- Rule: an entry with another fingerprint is a mismatch, whatever its state. An entry in flight belongs
-- to its owner until the lease ends, so that the id is free again after a worker was killed. A second
-- claim by the same owner changes nothing.
--
-- Returns { 'new' } | { 'in_flight', ms left } | { 'replay', reply } | { 'not_kept' } | { 'mismatch' }.
--
-- Example: no entry, begin f1 by a: { 'new' }. begin f1 by b: { 'in_flight', 600000 }.
-- begin f2 by c: { 'mismatch' }. After a has completed with "hello", begin f1 by d: { 'replay', 'hello' }.

local fingerprint, owner, lease_ms = ARGV[1], ARGV[2], ARGV[3]

local entry = redis.call('HMGET', KEYS[1], 'fingerprint', 'owner', 'state')
if not entry[1] then
  redis.call('HSET', KEYS[1], 'fingerprint', fingerprint, 'owner', owner, 'state', 'in_flight')
  redis.call('PEXPIRE', KEYS[1], lease_ms)
  return { 'new' }
end
if entry[1] ~= fingerprint then
  return { 'mismatch' }
end
if entry[3] == 'completed' then
  return { 'replay', redis.call('HGET', KEYS[1], 'reply') }
end
if entry[3] == 'not_kept' then
  return { 'not_kept' }
end
if entry[2] == owner then
  return { 'new' }
end
return { 'in_flight', redis.call('PTTL', KEYS[1]) }
