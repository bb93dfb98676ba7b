-- Token buckets and concurrency slots of one call: all of them are charged, or none is touched.
--
-- KEYS  1 .. b     buckets, one string each: "<level>:<time>:<rest>"
--       b+1 ..     slots, one sorted set each: lease ids, scored by the ms at which they expire
--       then       estimates, one sorted set for each bucket that has leases, in their order:
--                  "<lease>|<what it took, in micro-tokens>", scored likewise
-- ARGV  1          take | peek | finish
--       2          b, 3 number of sets of slots
--       4          lease id, 5 its lifetime in ms
--       6 ..       five a bucket: rate (micro-tokens a second), burst, cost and estimate
--                  (micro-tokens), flag
--       then       two for each set of slots: limit, flag
--
-- A bucket holds micro-tokens, and a rate of r tokens a second brings r micro-tokens a microsecond.
-- <rest> keeps the fraction of a micro-token, in millionths, so that no reading loses anything.
-- <time>, in µs of this server, never goes back; while the clock is behind it, nothing flows in. A
-- missing bucket is full: a key lives at least as long as the bucket takes to fill.
--
-- take    Rule: passes where level >= cost, which a cost above burst never does, and where a slot is
--         free or the lease has one already. flag 1 is enforced; flag 0 (shadow) refuses nothing,
--         and is charged only if it passes itself. 2 on top: a bucket with leases, which remembers
--         what the lease took.
-- peek    Returns what take would return, and charges nothing.
-- finish  Takes cost (gives it back if negative) and removes the lease. flag 1 lets the level go
--         below zero, which is debt, down to -burst: it is paid off in the time in which the bucket
--         fills. flag 0 stops at zero. 2 on top: only if the bucket remembers that the lease took
--         this estimate, so that a second finish, or one of a lease that is unknown, does nothing.
--
-- Returns { 1 if nothing enforced refused, µs now, then (1 if passed, level, µs that <time> is
-- ahead of the clock) for each bucket, (1 if passed, slots in use) for each set }.
--
-- Example: rate 2, burst 5, stored "1000000:T:0", 1.5 s later. Level 1 + 2 * 1.5 = 4. take with
-- cost 1 passes, stores "3000000:T+1500000:0" with a lifetime of (5 - 3) / 2 = 1 s and a second on
-- top, and returns { 1, T+1500000, 1, 3000000, 0 }.

local LONGEST_MS = 1e12

local mode, buckets, sets = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lease, ttl_ms = ARGV[4], tonumber(ARGV[5])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now / 1000)

local function whole(number)
  return string.format('%.0f', number)
end

local function filled(stored, rate, burst)
  if not stored then
    return burst, now, 0
  end
  local level, at, rest = string.match(stored, '^(-?%d+):(%d+):(%d+)$')
  level, at, rest = tonumber(level), tonumber(at), tonumber(rest)
  local elapsed = now - at
  if elapsed > 0 then
    -- Split so that no product leaves the 53 bits in which a double is exact.
    local per_us, part = math.floor(rate / 1000000), rate % 1000000
    rest = rest + (elapsed % 1000000) * part
    level = level + elapsed * per_us + math.floor(elapsed / 1000000) * part
      + math.floor(rest / 1000000)
    rest, at = rest % 1000000, now
  end
  if level >= burst then
    level, rest = burst, 0
  end
  if level < -burst then
    level, rest = -burst, 0
  end
  return level, at, rest
end

local function store(key, bucket)
  local fill_us = (bucket.burst - bucket.level) / bucket.rate * 1000000 + bucket.at - now
  local keep_ms = math.min(math.ceil(fill_us / 1000) + 1000, LONGEST_MS)
  local value = whole(bucket.level) .. ':' .. whole(bucket.at) .. ':' .. whole(bucket.rest)
  redis.call('SET', key, value, 'PX', whole(keep_ms))
end

local function remember(key, member)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now_ms))
  redis.call('ZADD', key, whole(now_ms + ttl_ms), member)
  if redis.call('PTTL', key) < ttl_ms + 1000 then
    redis.call('PEXPIRE', key, whole(ttl_ms + 1000))
  end
end

local allowed = 1
local states = {}
local estimates = buckets + sets
local stored = {}
for i = 1, buckets do
  -- One by one: a master that imports the slot refuses MGET when one of the keys is not there.
  stored[i] = redis.call('GET', KEYS[i])
  local a = 5 * i + 1
  local rate, burst, cost = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  local flag = tonumber(ARGV[a + 4])
  local set = flag % 2 == 1
  local level, at, rest = filled(stored[i], rate, burst)
  local usable = rate > 0 and burst > 0
  local passed = usable and (mode == 'finish' or level >= cost)
  if not passed and set then
    allowed = 0
  end
  states[i] = { rate = rate, burst = burst, cost = cost, set = set, passed = passed,
                level = level, at = at, rest = rest, known = stored[i] }
  if flag >= 2 then
    estimates = estimates + 1
    states[i].estimates, states[i].member = KEYS[estimates], lease .. '|' .. ARGV[a + 3]
  end
end

local slots = {}
for i = buckets + 1, buckets + sets do
  local a = 6 + 5 * buckets + 2 * (i - buckets - 1)
  local in_use = redis.call('ZCOUNT', KEYS[i], '(' .. whole(now_ms), '+inf')
  local score = redis.call('ZSCORE', KEYS[i], lease)
  local has_slot = score and tonumber(score) > now_ms
  local passed = has_slot or in_use < tonumber(ARGV[a])
  if not passed and ARGV[a + 1] == '1' then
    allowed = 0
  end
  slots[#slots + 1] = { key = KEYS[i], passed = passed, has_slot = has_slot, in_use = in_use }
end

if mode == 'finish' then
  for i, bucket in ipairs(states) do
    local is_due = not bucket.estimates
      or redis.call('ZREM', bucket.estimates, bucket.member) == 1
    -- What is given back to a full bucket runs over, and would only create a key.
    if is_due and bucket.passed and (bucket.known or bucket.cost > 0) then
      local level = math.min(bucket.level - bucket.cost, bucket.burst)
      if not bucket.set then
        level = math.max(level, math.min(bucket.level, 0))
      elseif level < -bucket.burst then
        level, bucket.rest = -bucket.burst, 0
      end
      bucket.level = level
      store(KEYS[i], bucket)
    end
  end
  for _, slot in ipairs(slots) do
    redis.call('ZREM', slot.key, lease)
  end
elseif mode == 'take' and allowed == 1 then
  for i, bucket in ipairs(states) do
    if bucket.passed and bucket.cost > 0 then
      bucket.level = bucket.level - bucket.cost
      store(KEYS[i], bucket)
    end
    if bucket.estimates then
      remember(bucket.estimates, bucket.passed and bucket.member or lease .. '|0')
    end
  end
  for _, slot in ipairs(slots) do
    if slot.passed then
      remember(slot.key, lease)
      slot.in_use = slot.in_use + (slot.has_slot and 0 or 1)
    end
  end
end

local reply = { allowed, now }
for _, bucket in ipairs(states) do
  reply[#reply + 1] = bucket.passed and 1 or 0
  reply[#reply + 1] = bucket.level
  reply[#reply + 1] = bucket.at - now
end
for _, slot in ipairs(slots) do
  reply[#reply + 1] = slot.passed and 1 or 0
  reply[#reply + 1] = slot.in_use
end
return reply
