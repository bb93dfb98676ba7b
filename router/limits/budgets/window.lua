-- What the ledger's scripts share: a window in one period, and the books of its organization.
--
-- KEYS, ARGV  none of its own; this file stands before each of the ledger's scripts.
--
-- counter  hash of one window in one period: settled and reserved (nano-USD, tokens or calls),
--          "t:<percent>" for each threshold that was crossed. Without a settled field the window is
--          lost: its past is only in the record store. What is settled meanwhile is kept apart, in
--          "o:<lease>", and counted in orphans, until it is seeded.
-- leases   sorted set of what is reserved in it: "<lease>|<amount>", scored by the ms of expiry.
-- marks    hash of the organization: window id -> start of the latest period that was opened here;
--          epoch: the ms at which this Redis saw the organization for the first time.
--
-- Rule: a missing counter is a new period if an earlier one was opened here and this one was not;
-- otherwise it has been lost, or was never here, and only seeding opens it.
--
-- Example: marks { "org:spend" = 100 }. Period 200 has no counter: it is new, begins at 0 and the
-- mark becomes 200. When its counter is missing later, mark = 200 says that it has been lost.

local KEEP_MARKS_MS = '34560000000'

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

-- settled and reserved as Redis has them, or nil when the window is lost
local function totals(counter, marks, id, start)
  local found = redis.call('HMGET', counter, 'settled', 'reserved')
  if found[1] then
    return found[1], found[2]
  end
  local mark = redis.call('HGET', marks, id)
  if mark and tonumber(mark) < tonumber(start) and redis.call('EXISTS', counter) == 0 then
    return '0', '0', true
  end
  return nil
end

local function open(counter, marks, id, start, at_ms, settled, reserved)
  redis.call('HSET', counter, 'settled', settled, 'reserved', reserved)
  expire_at(counter, at_ms)
  local mark = redis.call('HGET', marks, id)
  if not mark or tonumber(mark) < tonumber(start) then
    redis.call('HSET', marks, id, start)
  end
  redis.call('PEXPIRE', marks, KEEP_MARKS_MS)
end

local function epoch_of(marks)
  local epoch = redis.call('HGET', marks, 'epoch')
  if not epoch then
    epoch = whole(clock[1] * 1000000 + clock[2])
    redis.call('HSET', marks, 'epoch', epoch)
    redis.call('PEXPIRE', marks, KEEP_MARKS_MS)
  end
  return epoch
end

-- Appends index and percent of every threshold "percent=amount" that settled has reached just now.
local function cross(counter, thresholds, settled, index, crossed)
  for percent, amount in string.gmatch(thresholds, '(%d+)=(%d+)') do
    if tonumber(settled) >= tonumber(amount)
        and redis.call('HSETNX', counter, 't:' .. percent, '1') == 1 then
      crossed[#crossed + 1] = index
      crossed[#crossed + 1] = tonumber(percent)
    end
  end
end
