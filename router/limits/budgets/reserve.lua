-- Reserves an amount in every window of a call, or in none; or reads the windows.
--
-- KEYS  1      lease: a string that is there from the reservation until it is settled and forgotten
--       2      opened periods of the organization
--       3, 4 ..  counter and leases of each window
-- ARGV  1      reserve | read
--       2      lease id, 3 its lifetime in ms, 4 how long after that it may still be settled, in ms
--       5      number of windows
--       6      since, see window.lua
--       7 ..   seven a window: id, start ms, end ms (0 = never), ms at which the counter may go
--              (0 = never), limit (-1 = none), amount, 1 enforced or 0 shadow
--
-- Rule: amount <= limit - settled - reserved, in every enforced window; an amount of 0 always fits.
-- Leases that have expired do not count, and a run that reserves or refuses drops them; one that reads,
-- or finds a window lost, does not: its caller would not report them. The server's clock must lie inside the period of
-- every window; if it does not, the script changes nothing and the caller finds the right period.
-- A second reservation with a live lease changes nothing and returns what the first one did.
--
-- Returns { 'reserved' | 'denied' | 'rebuild' | 'period' | 'closed', ms now or ms when it was
-- reserved, epoch, ids of dropped leases, then for each window settled and reserved as they were
-- found, and state: '1' it fits, '0' it does not, '2' the window is lost }. 'rebuild': no window
-- refuses, but one is lost. 'closed': the lease was settled before it was reserved.
--
-- Example: limit 10, settled 4, one live lease "a|3". reserve b 3: 3 <= 10 - 4 - 3, so leases gain
-- "b|3", reserved becomes 6. reserve c 1: 1 > 10 - 4 - 6, denied with settled 4 and reserved 6.

local mode, lease, ttl_ms, late_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local windows, since, opened = tonumber(ARGV[5]), ARGV[6], KEYS[2]

local reserved_at
if mode == 'reserve' then
  local open_since = redis.call('GET', KEYS[1])
  if open_since == 'done' then
    return { 'closed', now_ms, '', {} }
  end
  reserved_at = open_since and tonumber(open_since)
  if reserved_at and now_ms >= reserved_at + ttl_ms then
    reserved_at = nil
  end
end

if not reserved_at then
  for i = 1, windows do
    local start, finish = tonumber(ARGV[7 * i + 1]), tonumber(ARGV[7 * i + 2])
    if now_ms < start or (finish > 0 and now_ms >= finish) then
      return { 'period', now_ms, '', {} }
    end
  end
end

local expired, seen, freed = {}, {}, {}

local function without_expired(i, leases, reserved)
  local due = redis.call('ZRANGEBYSCORE', leases, '-inf', whole(now_ms))
  if #due == 0 then
    return reserved
  end
  freed[i] = 0
  for _, member in ipairs(due) do
    local id, amount = string.match(member, '^(.*)|(%d+)$')
    freed[i] = freed[i] + tonumber(amount)
    if not seen[id] then
      seen[id] = true
      expired[#expired + 1] = id
    end
  end
  return whole(tonumber(reserved) - freed[i])
end

local status, lost = 'reserved', false
local rows, fresh = {}, {}
for i = 1, windows do
  local a = 7 * i
  local counter, leases = KEYS[2 * i + 1], KEYS[2 * i + 2]
  local settled, reserved, new = totals(counter, opened, ARGV[a], ARGV[a + 1], since)
  fresh[i] = new
  local state = '1'
  if not settled then
    settled, reserved, state = '0', '0', '2'
    lost = true
  else
    reserved = new and '0' or without_expired(i, leases, reserved)
    local limit, amount = tonumber(ARGV[a + 4]), tonumber(ARGV[a + 5])
    if limit >= 0 and amount > 0 and amount > limit - tonumber(settled) - tonumber(reserved) then
      state = '0'
      if ARGV[a + 6] == '1' then
        status = 'denied'
      end
    end
  end
  rows[3 * i - 2], rows[3 * i - 1], rows[3 * i] = settled, reserved, state
end

local epoch = redis.call('HGET', opened, 'epoch') or ''
if mode == 'reserve' and reserved_at then
  status = 'reserved'
elseif lost and status == 'reserved' then
  status = 'rebuild'
elseif mode == 'reserve' and status == 'reserved' then
  reserved_at, epoch = now_ms, epoch_of(opened)
  redis.call('SET', KEYS[1], whole(now_ms), 'PX', whole(ttl_ms + late_ms))
  for i = 1, windows do
    local a = 7 * i
    local counter, leases = KEYS[2 * i + 1], KEYS[2 * i + 2]
    if fresh[i] then
      open(counter, opened, ARGV[a], ARGV[a + 1], ARGV[a + 3], '0', '0')
    end
    if ARGV[a + 5] ~= '0' then
      redis.call('HINCRBY', counter, 'reserved', ARGV[a + 5])
      redis.call('ZADD', leases, whole(now_ms + ttl_ms), lease .. '|' .. ARGV[a + 5])
      expire_at(leases, ARGV[a + 3])
    end
  end
end

local dropped = {}
if mode == 'reserve' and status ~= 'rebuild' then
  dropped = expired
  for i, amount in pairs(freed) do
    redis.call('ZREMRANGEBYSCORE', KEYS[2 * i + 2], '-inf', whole(now_ms))
    redis.call('HINCRBY', KEYS[2 * i + 1], 'reserved', whole(-amount))
  end
end

local reply = { status, status == 'reserved' and reserved_at or now_ms, epoch, dropped }
for i = 1, #rows do
  reply[i + 4] = rows[i]
end
return reply
