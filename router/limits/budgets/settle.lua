-- Ends a reservation, once: frees what was reserved and books what was used (release: nothing).
--
-- KEYS  1      lease, 2 opened periods of the organization
--       3, 4 ..  counter and leases of each window, of the period in which it was reserved
-- ARGV  1      lease id
--       2      ms at which it was reserved, 3 epoch then; both empty when the caller never got a reply
--       4      for how long after its reservation a settled lease is remembered, in ms
--       5      the same, in ms from now, where 2 or 3 is empty or the epoch is another one
--       6 ..   six a window: id, start ms, ms at which the counter may go (0 = never), amount
--              reserved, amount used, thresholds as "percent=amount,..."
--
-- Rule: a lease that exists is booked, one that is marked done is not. A missing lease was settled and
-- then forgotten, if it is old enough for that and the epoch of Redis is the same; it is not booked
-- again, unless a window that was seeded meanwhile has it as a call in flight. Otherwise Redis has lost
-- it (emptied, failed over) or never had it, and it is booked.
-- In a lost window the amount is kept apart, as an orphan, and seed.lua adds it. A window that was
-- seeded with the record of this lease has booked it already.
--
-- Returns { 'booked' | 'done', then index and percent of each threshold reached by this booking }.
--
-- Example: settled 4, leases { "b|3" }, limit 10, thresholds "50=5". settle b with 2: leases lose
-- "b|3", reserved falls by 3, settled becomes 6, which is 5 or more for the first time: { 'booked',
-- 1, 50 }. A second settle of b finds its lease done and returns { 'done' }.

local lease, reserved_at, epoch = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local remember_ms, late_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local opened = KEYS[2]

local open_since = redis.call('GET', KEYS[1])
local known = epoch ~= '' and redis.call('HGET', opened, 'epoch') == epoch
local forget_ms = known and reserved_at + remember_ms or now_ms + late_ms
local is_forgotten = not open_since and now_ms >= forget_ms
if is_forgotten then
  for i = 1, (#KEYS - 2) / 2 do
    if redis.call('ZSCORE', KEYS[2 * i + 2], lease .. '|' .. ARGV[6 * i + 3]) then
      is_forgotten = false
    end
  end
end
if open_since == 'done' or is_forgotten then
  return { 'done' }
end

local reply = { 'booked' }
for i = 1, (#KEYS - 2) / 2 do
  local a = 6 * i
  local counter, leases = KEYS[2 * i + 1], KEYS[2 * i + 2]
  local id, start, gone_ms = ARGV[a], ARGV[a + 1], ARGV[a + 2]
  local reserved, used = ARGV[a + 3], ARGV[a + 4]
  if redis.call('ZREM', leases, lease .. '|' .. reserved) == 1 then
    redis.call('HINCRBY', counter, 'reserved', '-' .. reserved)
  end
  local settled, _, fresh = totals(counter, opened, id, start)
  if used == '0' then
    if not settled and reserved ~= '0' then
      redis.call('HINCRBY', counter, 'orphans', 1)
      expire_at(counter, gone_ms)
    end
  elseif not settled or redis.call('HDEL', counter, 'c:' .. lease) == 0 then
    if fresh then
      open(counter, opened, id, start, gone_ms, '0', '0')
    end
    if settled then
      redis.call('HINCRBY', counter, 'settled', used)
      reach(counter, ARGV[a + 5], tonumber(settled) + tonumber(used), i, reply)
    else
      redis.call('HSET', counter, 'o:' .. lease, used)
      redis.call('HINCRBY', counter, 'orphans', 1)
      expire_at(counter, gone_ms)
    end
  end
end

if now_ms < forget_ms then
  redis.call('SET', KEYS[1], 'done', 'PX', whole(forget_ms - now_ms))
else
  redis.call('DEL', KEYS[1])
end
return reply
