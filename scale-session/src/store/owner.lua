-- Shared by the scripts of sessions; put before them.
-- A session that belongs to somebody has two keys more: KEYS[2] is the owner's hash (which life of it this is, the number last given out,
-- the number up to which sessions are revoked), KEYS[3] the owner's sessions by when they expire. It holds its own number, and is gone once
-- that is revoked; or once the hash is lost, for then nobody knows.

-- Leaves nothing of the session but that it was there.
local function empty()
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.byte(field) ~= 0 then redis.call('HDEL', KEYS[1], field) end
  end
  redis.call('HSET', KEYS[1], '\0frozen', 0)
end

-- Of one that was replaced before, that stays known: it is emptied, and not said to be revoked.
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

-- What is left of the session in KEYS[1] once its client has another one: it is read for a while, at the most until its own end, and known
-- as replaced for some time after that.
local function freeze(now, grace, known, next)
  local ends = tonumber(redis.call('HGET', KEYS[1], '\0ends'))
  redis.call('HSET', KEYS[1], '\0frozen', string.format('%d', math.min(now + grace, ends)), '\0next', next)
  redis.call('PEXPIRE', KEYS[1], string.format('%d', grace + known))
end
