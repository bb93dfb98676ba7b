-- Reserves again what a running call had reserved in a Redis that was emptied since.
--
-- KEYS  1      lease, 2 opened periods of the organization
--       3, 4 ..  counter and leases of each window, of the period in which it was reserved
-- ARGV  1      lease id, 2 epoch in which it was reserved, 3 ms at which it expires
--       4 ..   four a window: id, start ms, ms at which the counter may go (0 = never), amount
--              reserved
--
-- Rule: in the same epoch nothing is lost. A lease that is marked done has been settled since. Else it
-- is put among the leases of each window where it is not yet; a window that is lost counts them when it
-- is seeded.
--
-- Returns 1, or 0 when the epoch is the same.
--
-- Example: leases { }, settled 4, reserved 0. b of another epoch with 3: leases { "b|3" }, reserved 3.
-- Once more: nothing changes.

local lease, epoch, expires_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local opened = KEYS[2]

if redis.call('HGET', opened, 'epoch') == epoch then
  return 0
end
if redis.call('GET', KEYS[1]) == 'done' or expires_ms <= now_ms then
  return 1
end
for i = 1, (#KEYS - 2) / 2 do
  local a = 4 * i
  local counter, leases = KEYS[2 * i + 1], KEYS[2 * i + 2]
  local amount = ARGV[a + 3]
  if amount ~= '0'
      and redis.call('ZADD', leases, 'NX', whole(expires_ms), lease .. '|' .. amount) == 1 then
    expire_at(leases, ARGV[a + 2])
    local settled, _, fresh = totals(counter, opened, ARGV[a], ARGV[a + 1])
    if fresh then
      open(counter, opened, ARGV[a], ARGV[a + 1], ARGV[a + 2], '0', amount)
    elseif settled then
      redis.call('HINCRBY', counter, 'reserved', amount)
    end
  end
end
return 1
