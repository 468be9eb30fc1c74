-- Shared by the scripts that make jobs fetchable; put before them.
-- Wakes up to `count` sleeping workers, the last to fall asleep first. A sleeper nobody hears for is dead: the next one is tried, within a
-- bound. In a Cluster the count of hearers is only this node's, so every call counts, and one worker more is woken.
local function wake(sleepers, channel, queue, count, cluster)
  if cluster then count = count + 1 end
  local tries = count + 64
  while count > 0 and tries > 0 do
    local popped = redis.call('ZPOPMAX', sleepers)
    if not popped[1] then return end
    if redis.call('PUBLISH', channel .. popped[1], queue) > 0 or cluster then count = count - 1 end
    tries = tries - 1
  end
end

local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- `unpack` fails over about 8,000 elements.
local function chunked(command, key, list, first, last)
  local sum = 0
  for from = first, last, 4000 do
    sum = sum + redis.call(command, key, unpack(list, from, math.min(from + 3999, last)))
  end
  return sum
end

-- To the dead set, which is bounded by number and age.
local function bury(dead, now, reason, job, most, age)
  redis.call('ZADD', dead, now, struct.pack('>Hc0', #reason, reason) .. job)
  redis.call('ZREMRANGEBYSCORE', dead, '-inf', now - age)
  redis.call('ZREMRANGEBYRANK', dead, 0, -most - 1)
end
