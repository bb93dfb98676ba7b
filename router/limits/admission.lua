-- Admits a call: runs bucket.lua for its rates, nonce.lua for its signature, claim.lua for its id and
-- reserve.lua for its budgets, in this order, and stops at the first one that refuses.
--
-- KEYS  those of bucket.lua (take), of nonce.lua, of claim.lua and of reserve.lua (reserve), in this order
-- ARGV  1 .. 4  number of KEYS of each of the four
--       5 .. 8  number of ARGV of each; 0 skips it
--       9 ..    their ARGV, in the same order
--
-- Rule: a budget that refuses frees the id that this call has just claimed. When a budget has to be
-- rebuilt, or belongs to another period, the id stays claimed, because the same call comes again.
--
-- Returns { the reply of each of the four }; {} for one that did not run.
--
-- Example: one bucket, an id, one window: ARGV { 1, 0, 1, 4, 8, 0, 3, 12, 'take', ... }. The bucket lets
-- the call pass, but another call has the id: { { 1, ... }, {}, { 'in_flight', 600000 }, {} }. No budget
-- was touched.

local used_keys, used_args = 0, 8

local function next_of(part)
  local keys, args = tonumber(ARGV[part]), tonumber(ARGV[part + 4])
  local keys_from, args_from = used_keys + 1, used_args + 1
  used_keys, used_args = used_keys + keys, used_args + args
  if args == 0 then
    return nil
  end
  return { unpack(KEYS, keys_from, used_keys) }, { unpack(ARGV, args_from, used_args) }
end

local reply = { {}, {}, {}, {} }

local keys, args = next_of(1)
if keys then
  reply[1] = rates(keys, args)
  if reply[1][1] == 0 then
    return reply
  end
end

keys, args = next_of(2)
if keys then
  reply[2] = nonce(keys, args)
  if reply[2][1] ~= 'taken' then
    return reply
  end
end

keys, args = next_of(3)
local claimed = keys ~= nil
local claimed_key = claimed and keys[1]
if claimed then
  reply[3] = claim(keys, args)
  if reply[3][1] ~= 'new' then
    return reply
  end
end

keys, args = next_of(4)
if keys then
  reply[4] = reserve(keys, args)
  local status = reply[4][1]
  if claimed and (status == 'denied' or status == 'closed') then
    redis.call('DEL', claimed_key)
  end
end
return reply
