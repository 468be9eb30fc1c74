-- Put before the scripts of a queue.

-- Wakes up to `count` idle workers, the last to fall asleep first. If nobody hears the message, the worker is gone: the next one is
-- tried, within a bound. In a Cluster the count of hearers is only this node's, so every call counts, and one worker more is woken.
local function wake(sleepers, channel, queue, count, cluster)
  if cluster then count = count + 1 end
  local tries = count + 1000
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

-- What a leased job is kept under: its id, or as much as there is of one.
local function tag_of(job)
  return #job >= 17 and string.sub(job, 2, 17) or job
end

-- Moves jobs of the dead, which are bounded by number and age; at most a hundred go at once.
-- dead: set of tags by time of death; graves: reason and job by tag
local function trim_dead(dead, graves, now, most, age)
  local gone = redis.call('ZRANGEBYSCORE', dead, '-inf', now - age, 'LIMIT', 0, 100)
  local over = redis.call('ZCARD', dead) - most
  if #gone == 0 and over > 0 then gone = redis.call('ZRANGE', dead, 0, math.min(over, 100) - 1) end
  if #gone > 0 then
    redis.call('ZREM', dead, unpack(gone))
    redis.call('HDEL', graves, unpack(gone))
  end
end

-- A blocked job as a member of the set of all lines, which is ordered by bytes: its line, then the time of push or another, then the job.
local function line_prefix(line)
  return struct.pack('>Hc0', #line, line)
end

local function blocked_member(line, order, job)
  return line_prefix(line) .. order .. job
end

-- The six bytes of the time of push.
local function pushed_order(job)
  return #job >= 25 and string.sub(job, 20, 25) or string.rep('\0', 6)
end

-- The six bytes of a time in ms.
local function time_order(ms)
  return struct.pack('>HI', math.floor(ms / 4294967296), ms % 4294967296)
end

local function job_of(member)
  return string.sub(member, 2 + struct.unpack('>H', member) + 7)
end

-- The first members of a line.
local function first_of(blocked, line, count)
  local prefix = line_prefix(line)
  return redis.call('ZRANGEBYLEX', blocked, '[' .. prefix, '(' .. prefix .. '\255\255\255\255\255\255\255', 'LIMIT', 0, count)
end
