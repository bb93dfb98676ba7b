-- Ends the claim on an idempotency id: keeps the reply for replays, or frees the id.
--
-- KEYS  1 entry
-- ARGV  1 complete | not_kept | abandon, 2 owner, 3 how long to keep the entry, in ms, 4 reply
--
-- Rule: only the owner of an entry in flight can end it. A call whose lease has ended, so that another
-- call could claim the id, changes nothing. not_kept: the call was done, but its reply is too large
-- to be stored; a duplicate is neither done again nor replayed.
--
-- Returns 1 if it ended the claim, else 0.
--
-- Example: in flight for a. complete by b: 0. complete by a with "hello": 1. abandon by a: 0.

local mode, owner, keep_ms, reply = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local entry = redis.call('HMGET', KEYS[1], 'owner', 'state')
if entry[1] ~= owner or entry[2] ~= 'in_flight' then
  return 0
end
if mode == 'abandon' then
  redis.call('DEL', KEYS[1])
  return 1
end
if mode == 'complete' then
  redis.call('HSET', KEYS[1], 'state', 'completed', 'reply', reply)
else
  redis.call('HSET', KEYS[1], 'state', 'not_kept')
end
redis.call('PEXPIRE', KEYS[1], keep_ms)
return 1
