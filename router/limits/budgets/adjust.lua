-- Corrects what a window has settled: adds to it, or sets it. Once for each id of a correction.
--
-- KEYS  1 lease of the correction, 2 opened periods of the organization, 3 counter
-- ARGV  1 add | set, 2 amount (add: negative gives back), 3 how long the correction's id is
--       remembered, in ms, 4 window id, 5 start ms, 6 end ms (0 = never), 7 ms at which the counter
--       may go (0 = never), 8 thresholds as "percent=amount,..."
--
-- Rule: settled never falls below 0. What is reserved stays as it is, and so do the thresholds that
-- were reached. A lost window is not corrected: it has to be rebuilt first.
--
-- Returns { 'adjusted', settled before, settled after, then 1 and percent of each threshold reached }
-- | { 'done' } for an id that was used | { 'lost' } | { 'period', ms now }.
--
-- Example: settled 6. add -2 as "c1": { 'adjusted', '6', '4' }. add -2 as "c1" again: { 'done' }.
-- set 0 as "c2": { 'adjusted', '4', '0' }.

local opened, counter = KEYS[2], KEYS[3]
local id, start, finish, gone_ms = ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7]

if now_ms < tonumber(start) or (finish > 0 and now_ms >= finish) then
  return { 'period', now_ms }
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  return { 'done' }
end
local before, _, fresh = totals(counter, opened, id, start)
if not before then
  return { 'lost' }
end
if fresh then
  open(counter, opened, id, start, gone_ms, '0', '0')
end

local amount = tonumber(ARGV[2])
local after = ARGV[1] == 'set' and amount or math.max(0, tonumber(before) + amount)
redis.call('HSET', counter, 'settled', whole(after))
redis.call('SET', KEYS[1], 'done', 'PX', ARGV[3])
local reply = { 'adjusted', before, whole(after) }
reach(counter, ARGV[8], after, 1, reply)
return reply
