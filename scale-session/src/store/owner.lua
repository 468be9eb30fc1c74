-- Functions shared by the session scripts; prepended to them.
--
-- A session with an owner has two additional keys: KEYS[2] is the owner's hash (random id of the
-- hash, last issued number, number up to which sessions are revoked), KEYS[3] the owner's sessions
-- sorted by expiry. The session holds its own number. It is gone when that number is revoked, and
-- also when the owner's hash is lost, because then its state is unknown.

-- Removes the content of the session; only its existence stays known.
local function empty()
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.byte(field) ~= 0 then redis.call('HDEL', KEYS[1], field) end
  end
  redis.call('HSET', KEYS[1], '\0frozen', 0)
end

-- Returns whether the session is revoked. A session that was replaced before is emptied and not
-- reported as revoked, so that the replacement stays known.
local function revoked()
  if not KEYS[2] then return false end
  local turn = redis.call('HGET', KEYS[1], '\0turn')
  if not turn then return false end
  local life, number = string.match(turn, '^(.*):(%d+)$')
  local owner = redis.call('HMGET', KEYS[2], 'life', 'revoked')
  if owner[1] == life and tonumber(number) > tonumber(owner[2] or 0) then return false end
  if redis.call('HEXISTS', KEYS[1], '\0frozen') == 1 then
    empty()
    return false
  end
  redis.call('UNLINK', KEYS[1])
  return true
end

local function longer(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end

local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Freezes the session in KEYS[1], because its client has a new session: it can be read for the
-- grace period, at most until its own end, and stays known as replaced for some time afterwards.
local function freeze(now, grace, known, next)
  local ends = tonumber(redis.call('HGET', KEYS[1], '\0ends'))
  redis.call('HSET', KEYS[1], '\0frozen', string.format('%d', math.min(now + grace, ends)), '\0next', next)
  redis.call('PEXPIRE', KEYS[1], string.format('%d', grace + known))
end
