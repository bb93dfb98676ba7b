-- Takes the nonce of a signed request for one call, if Redis can vouch that no other has had it.
--
-- KEYS  1 nonce: the lease id of the call that has it
--       2 count: of the nonces that the key has taken in its running period
--       3 memory: '<run of Redis> <ms>', the time since when no nonce of the organization was lost
-- ARGV  1 lease id of this call, 2 ms to keep a nonce, 3 quota of nonces of a key in that time,
--       4 the signature's timestamp in ms, 5 the router's time in ms
--
-- Rule: another run of Redis, after a restart or a failover, may have lost nonces. Its memory begins
-- now, or with its own start where nothing is left of an earlier one; a signature that is older may have
-- been used. A second claim by the same call changes nothing. A nonce above the quota is not taken.
--
-- Returns { 'taken' } | { 'replayed' } | { 'over_quota', ms left } | { 'not_remembered' }.
--
-- Example: quota 1. Claim n1 by a: { 'taken' }, again by a: { 'taken' }, by b: { 'replayed' }.
-- Claim n2 by b: { 'over_quota', 600000 }. After a restart, a signature from before: { 'not_remembered' }.

local owner, keep_ms, quota = ARGV[1], ARGV[2], tonumber(ARGV[3])
local signed_ms, now_ms = tonumber(ARGV[4]), tonumber(ARGV[5])

local known, facts = pcall(redis.call, 'INFO', 'server')
local run, up_s = '-', nil
if known and type(facts) == 'string' then
  run = string.match(facts, 'run_id:(%w+)') or '-'
  up_s = tonumber(string.match(facts, 'uptime_in_seconds:(%d+)'))
end

local memory = redis.call('GET', KEYS[3])
local memory_run, since_ms = nil, nil
if memory then
  memory_run, since_ms = string.match(memory, '^(%S+) (%d+)$')
end
if memory_run ~= run then
  since_ms = now_ms
  if not memory and up_s then
    since_ms = now_ms - math.max(up_s - 1, 0) * 1000  -- whole seconds, up to one too many
  end
  redis.call('SET', KEYS[3], run .. ' ' .. string.format('%.0f', since_ms))
end

local holder = redis.call('GET', KEYS[1])
if holder == owner then
  return { 'taken' }
end
if holder then
  return { 'replayed' }
end
if signed_ms < tonumber(since_ms) then
  return { 'not_remembered' }
end
if tonumber(redis.call('GET', KEYS[2]) or '0') >= quota then
  return { 'over_quota', redis.call('PTTL', KEYS[2]) }
end
if redis.call('INCR', KEYS[2]) == 1 then
  redis.call('PEXPIRE', KEYS[2], keep_ms)
end
redis.call('SET', KEYS[1], owner, 'NX', 'PX', keep_ms)
return { 'taken' }
