-- Opens a lost window with what the record store knows of its period, once.
--
-- KEYS  1 opened periods of the organization, 2 counter, 3 leases, 4 .. the corrections by hand that
--       are part of the sum
-- ARGV  1 inspect | seed, 2 window id, 3 start ms, 4 end ms (0 = never), 5 ms at which the counter may
--       go (0 = never), 6 since (see window.lua), 7 settled according to the records, 8 generation,
--       9 thresholds as "percent=amount,...", 10 how long a correction's id is remembered, in ms,
--       11 number of calls in flight, 12 number of leases whose records are in the sum although they may
--       not be settled yet, then three a call in flight: lease, amount reserved, ms of expiry, then
--       those leases
--
-- Rule: inspect returns the generation and the orphans, which are the leases that were settled here
-- since the window was lost. A window that has missed calls becomes lost by it. The caller sums up its
-- records without the orphans, and seeds with that generation. Each call that ends meanwhile makes a
-- new generation, and a seed of an older generation is refused, because the sum may or may not contain
-- that call's record. Of many callers the first one opens the window, and the others change nothing.
--
-- Returns { 'lost', generation, { orphans } } | { 'open' } | { 'period', ms now } for inspect, and
-- { 'seeded', then 1 and percent of each threshold reached } | { 'stale' } | { 'open' } for seed.
--
-- Example: counter { "o:x" = 7, orphans = 1 }. inspect: { 'lost', 1, { 'x' } }. The records without x
-- add up to 30. seed 30 with generation 1: settled = 37. A second seed: { 'open' }.

local opened, counter, leases = KEYS[1], KEYS[2], KEYS[3]
local mode, id, start, finish, gone_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local since = ARGV[6]

if mode == 'inspect' and (now_ms < tonumber(start) or (finish > 0 and now_ms >= finish)) then
  return { 'period', now_ms }
end

if totals(counter, opened, id, start, since) then
  return { 'open' }
end

if mode == 'inspect' and redis.call('HDEL', counter, 'settled') == 1 then
  redis.call('HINCRBY', counter, 'orphans', 1)
end

local generation = tonumber(redis.call('HGET', counter, 'orphans') or 0)
local fields = redis.call('HGETALL', counter)
local orphans, settled = {}, 0
for i = 1, #fields, 2 do
  local orphan = string.match(fields[i], '^o:(.*)$')
  if orphan then
    orphans[#orphans + 1] = orphan
    settled = settled + tonumber(fields[i + 1])
  end
end

if mode == 'inspect' then
  return { 'lost', generation, orphans }
end
if generation ~= tonumber(ARGV[8]) or redis.call('HEXISTS', counter, 'settled') == 1 then
  return { 'stale' }
end

for _, orphan in ipairs(orphans) do
  redis.call('HDEL', counter, 'o:' .. orphan)
end
for i = 4, #KEYS do
  redis.call('SET', KEYS[i], 'done', 'PX', ARGV[10])
end
local last_in_flight = 12 + 3 * tonumber(ARGV[11])
for i = 13, last_in_flight, 3 do
  if tonumber(ARGV[i + 2]) > now_ms then
    redis.call('ZADD', leases, ARGV[i + 2], ARGV[i] .. '|' .. ARGV[i + 1])
    expire_at(leases, gone_ms)
  end
end
for i = last_in_flight + 1, last_in_flight + tonumber(ARGV[12]) do
  redis.call('HSET', counter, 'c:' .. ARGV[i], '1')
end

-- Leases may have outlived their counter, if that alone was evicted.
local reserved = 0
for _, member in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  reserved = reserved + tonumber(string.match(member, '|(%d+)$'))
end
settled = tonumber(ARGV[7]) + settled
open(counter, opened, id, start, gone_ms, whole(settled), whole(reserved), since)
local reply = { 'seeded' }
reach(counter, ARGV[9], settled, 1, reply)
return reply
