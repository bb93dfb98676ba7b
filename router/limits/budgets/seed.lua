-- Opens a lost window with what the record store knows of its period, once.
--
-- KEYS  1 opened periods of the organization, 2 counter, 3 leases
-- ARGV  1 inspect | seed, 2 window id, 3 start ms, 4 end ms (0 = never), 5 ms at which the counter may
--       go (0 = never), 6 settled according to the records, 7 generation,
--       8 thresholds as "percent=amount,..."
--
-- Rule: inspect returns the generation and the orphans, which are the leases that were settled here
-- since the window was lost. The caller sums up its records without those, and seeds with that
-- generation. Each new orphan makes a new generation, and a seed of an older generation is refused,
-- because the sum may or may not contain that orphan's record. Of many callers the first one opens
-- the window, and the others change nothing.
--
-- Returns { 'lost', generation, { orphans } } | { 'open' } | { 'period', ms now } for inspect, and
-- { 'seeded', then 1 and percent of each threshold reached } | { 'stale' } | { 'open' } for seed.
--
-- Example: counter { "o:x" = 7, orphans = 1 }. inspect: { 'lost', 1, { 'x' } }. The records without x
-- add up to 30. seed 30 with generation 1: settled = 37. A second seed: { 'open' }.

local opened, counter, leases = KEYS[1], KEYS[2], KEYS[3]
local mode, id, start, finish, gone_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]

if mode == 'inspect' and (now_ms < tonumber(start) or (finish > 0 and now_ms >= finish)) then
  return { 'period', now_ms }
end

if totals(counter, opened, id, start) then
  return { 'open' }
end

local generation = tonumber(redis.call('HGET', counter, 'orphans') or 0)
local fields = redis.call('HGETALL', counter)
local orphans, booked = {}, 0
for i = 1, #fields, 2 do
  local orphan = string.match(fields[i], '^o:(.*)$')
  if orphan then
    orphans[#orphans + 1] = orphan
    booked = booked + tonumber(fields[i + 1])
  end
end

if mode == 'inspect' then
  return { 'lost', generation, orphans }
end
if generation ~= tonumber(ARGV[7]) then
  return { 'stale' }
end

-- Leases may have outlived their counter, if that alone was evicted.
local reserved = 0
for _, member in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  reserved = reserved + tonumber(string.match(member, '|(%d+)$'))
end
redis.call('DEL', counter)
local settled = tonumber(ARGV[6]) + booked
open(counter, opened, id, start, gone_ms, whole(settled), whole(reserved))
local reply = { 'seeded' }
reach(counter, ARGV[8], settled, 1, reply)
return reply
