-- Functions of the ledger's scripts: one window in one period, and the opened periods of its
-- organization.
--
-- KEYS, ARGV  none of its own; this file stands before each of the ledger's scripts.
--
-- counter  hash of one window in one period: settled and reserved (nano-USD, tokens or calls),
--          "t:<percent>" for each threshold that was reached, since: see below. Without a settled
--          field the window is lost: only the record store has its past. Until it is seeded, what is
--          settled is kept apart in "o:<lease>" and counted in orphans. "c:<lease>": the record of
--          that lease was in the sum that seeded the window.
-- leases   sorted set of what is reserved in it: "<lease>|<amount>", scored by the ms of expiry.
-- opened   hash of the organization: window id -> start of the latest period that was opened here;
--          "since:<window id>"; epoch: when this Redis saw the organization for the first time.
-- since    each router knows since when it has charged all windows of an organization: the ms at which
--          a budget was last added to its document, 0 if never. A window remembers the latest since
--          that it was seeded for. One that was seeded for an earlier since has missed calls.
--
-- Rule: a missing counter belongs to a new period if an earlier period was opened here and this one
-- was not. Otherwise the counter has been lost, or was never here, and only seed.lua opens it. A window
-- that has missed calls is lost, too.
--
-- Example: opened { "org:spend" = 100 }. Period 200 has no counter: it is new, begins at 0 and the
-- latest becomes 200. When its counter is missing later, latest = 200 says that it has been lost.

local KEEP_OPENED_MS = '34560000000'

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function whole(number)
  return string.format('%.0f', number)
end

local function expire_at(key, at_ms)
  if at_ms ~= '0' then
    redis.call('PEXPIREAT', key, at_ms)
  end
end

-- Settled and reserved as Redis has them, or nil when the window is lost; then whether its period is
-- new. Without since, missed calls do not matter.
local function totals(counter, opened, id, start, since)
  since = tonumber(since or 0)
  local found = redis.call('HMGET', counter, 'settled', 'reserved', 'since')
  if found[1] then
    if tonumber(found[3] or 0) >= since then
      return found[1], found[2]
    end
    return nil
  end
  local known = redis.call('HMGET', opened, id, 'since:' .. id)
  if known[1] and tonumber(known[1]) < tonumber(start) and tonumber(known[2] or 0) >= since
      and redis.call('EXISTS', counter) == 0 then
    return '0', '0', true
  end
  return nil
end

local function open(counter, opened, id, start, at_ms, settled, reserved, since)
  local known = redis.call('HMGET', opened, id, 'since:' .. id)
  since = math.max(tonumber(since or 0), tonumber(known[2] or 0))
  redis.call('HSET', counter, 'settled', settled, 'reserved', reserved, 'since', whole(since))
  expire_at(counter, at_ms)
  redis.call('HSET', opened, 'since:' .. id, whole(since))
  if not known[1] or tonumber(known[1]) < tonumber(start) then
    redis.call('HSET', opened, id, start)
  end
  redis.call('PEXPIRE', opened, KEEP_OPENED_MS)
end

local function epoch_of(opened)
  local epoch = redis.call('HGET', opened, 'epoch')
  if not epoch then
    epoch = whole(clock[1] * 1000000 + clock[2])
    redis.call('HSET', opened, 'epoch', epoch)
    redis.call('PEXPIRE', opened, KEEP_OPENED_MS)
  end
  return epoch
end

-- Appends index and percent of every threshold "percent=amount" that settled has reached just now.
local function reach(counter, thresholds, settled, index, reached)
  for percent, amount in string.gmatch(thresholds, '(%d+)=(%d+)') do
    if tonumber(settled) >= tonumber(amount)
        and redis.call('HSETNX', counter, 't:' .. percent, '1') == 1 then
      reached[#reached + 1] = index
      reached[#reached + 1] = tonumber(percent)
    end
  end
end
