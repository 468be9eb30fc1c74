-- Keeps a job that ends now, and removes some of the jobs beyond the bounds.
-- KEYS  ended, records, then the set of each of its tags
-- ARGV  tag of the job, its record, maximum number of jobs, maximum age (ms), prefix of the sets of
--       tags, then its tags
-- Reply 1
-- Cost  O(log jobs kept) for each tag; up to 100 jobs are removed
local now, prefix = clock(), ARGV[5]

-- A record in the hash: the tags, each with its length, then a zero and the record.
local function tags_in(value)
  local tags, at = {}, 1
  while true do
    local length = string.byte(value, at)
    if not length or length == 0 then return tags end
    tags[#tags + 1] = string.sub(value, at + 1, at + length)
    at = at + 1 + length
  end
end

local function forget(job)
  local value = redis.call('HGET', KEYS[2], job)
  for _, tag in ipairs(value and tags_in(value) or {}) do redis.call('ZREM', prefix .. tag, job) end
  redis.call('HDEL', KEYS[2], job)
  redis.call('ZREM', KEYS[1], job)
end

local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[4]), 'LIMIT', 0, 100)
local over = redis.call('ZCARD', KEYS[1]) + 1 - tonumber(ARGV[3])
if #old == 0 and over > 0 then old = redis.call('ZRANGE', KEYS[1], 0, math.min(over, 100) - 1) end
for _, job in ipairs(old) do forget(job) end

local head = ''
for n = 6, #ARGV do
  head = head .. string.char(#ARGV[n]) .. ARGV[n]
  redis.call('ZADD', KEYS[n - 3], now, ARGV[1])
end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], head .. '\0' .. ARGV[2])
return 1
