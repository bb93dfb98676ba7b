-- What a lease has reserved in each of some windows.
--
-- KEYS  1 ..  leases of each window, of the period in which it was reserved
-- ARGV  1     lease id
--
-- Rule: a window in which the lease has reserved nothing, or no longer, has 0. It looks at every
-- running call of the window, so it is for the rare caller who does not know what was reserved.
--
-- Returns the amounts, one a window.
--
-- Example: leases { "a|3", "b|4" } and { "b|1" }, lease a: { 3, 0 }.

local prefix = ARGV[1] .. '|'
local amounts = {}
for i = 1, #KEYS do
  amounts[i] = 0
  for _, member in ipairs(redis.call('ZRANGE', KEYS[i], 0, -1)) do
    if string.sub(member, 1, #prefix) == prefix then
      amounts[i] = tonumber(string.sub(member, #prefix + 1)) or amounts[i]
    end
  end
end
return amounts
