-- Everything that may stand between a call and a backend: its rates, its id and its budgets, each
-- asked only where none before it has refused.
--
-- KEYS  those of bucket.lua (take), of idempotency.lua and of ledger.lua (reserve), in this order
-- ARGV  1 .. 3  how many KEYS each of the three has
--       4 .. 6  how many ARGV; none: it is not asked
--       7 ..    their ARGV, in the same order
--
-- Rule: a budget that refuses frees the id that this call has just claimed. While it has to be
-- rebuilt, or looked up in another period, the id stays claimed: the same call asks again.
--
-- Returns { what bucket.lua, idempotency.lua and ledger.lua have returned }; {} if not asked.
--
-- Example: one bucket, an id, one window: ARGV { 1, 1, 4, 8, 3, 12, 'take', ... }. The bucket lets
-- the call pass, its id is taken: { { 1, ... }, { 'in_flight', 600000 }, {} }. No budget was asked.

local asked_keys, asked_args = 0, 6

local function next_of(part)
  local keys, args = tonumber(ARGV[part]), tonumber(ARGV[part + 3])
  local keys_from, args_from = asked_keys + 1, asked_args + 1
  asked_keys, asked_args = asked_keys + keys, asked_args + args
  if args == 0 then
    return nil
  end
  return { unpack(KEYS, keys_from, asked_keys) }, { unpack(ARGV, args_from, asked_args) }
end

local reply = { {}, {}, {} }

local keys, args = next_of(1)
if keys then
  reply[1] = rates(keys, args)
  if reply[1][1] == 0 then
    return reply
  end
end

keys, args = next_of(2)
local claimed = keys ~= nil
if claimed then
  reply[2] = claim(keys, args)
  if reply[2][1] ~= 'new' then
    return reply
  end
end

keys, args = next_of(3)
if keys then
  reply[3] = reserve(keys, args)
  local status = reply[3][1]
  if claimed and (status == 'denied' or status == 'closed') then
    redis.call('DEL', KEYS[tonumber(ARGV[1]) + 1])
  end
end
return reply
