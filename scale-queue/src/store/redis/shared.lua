-- Prefix of all scripts of a queue.

-- Wakes up to `count` idle workers, the last one added first. If PUBLISH reaches no subscriber, the
-- worker is gone, and the next one is tried, within a bound. In a Cluster PUBLISH counts only the
-- subscribers of this node, so every call counts, and one more worker is woken.
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

-- Returns the tag under which a leased job is kept: its id, or all bytes if they are too short.
local function tag_of(job)
  return #job >= 17 and string.sub(job, 2, 17) or job
end

-- Returns the key of the job's first limit, '' if it has none: see `format`.
local function group_of(job)
  local version = string.byte(job)
  local at = version == 2 and 26 or version == 3 and 27
  if not at or #job <= at then return '' end
  return string.sub(job, at + 2, at + 1 + struct.unpack('>H', string.sub(job, at, at + 1)))
end

-- Returns the list of the job's priority: see `format`.
local function list_of(job, high, waiting, low)
  local priority = string.byte(job) == 3 and string.byte(job, 26) % 128
  return priority == 0 and high or priority == 2 and low or waiting
end

-- Removes dead jobs beyond the bounds on number and age, at most 100 per call.
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

-- Prefix of a line's members in the set of blocked jobs, which is ordered by bytes: the line, then
-- the time of push or another time, then the job.
local function line_prefix(line)
  return struct.pack('>Hc0', #line, line)
end

local function blocked_member(line, order, job)
  return line_prefix(line) .. order .. job
end

-- Returns the six bytes of the time of push.
local function pushed_order(job)
  return #job >= 25 and string.sub(job, 20, 25) or string.rep('\0', 6)
end

-- Encodes a time in ms in six bytes.
local function time_order(ms)
  return struct.pack('>HI', math.floor(ms / 4294967296), ms % 4294967296)
end

local function job_of(member)
  return string.sub(member, 2 + struct.unpack('>H', member) + 7)
end

-- Returns the first members of a line.
local function first_of(blocked, line, count)
  local prefix = line_prefix(line)
  return redis.call('ZRANGEBYLEX', blocked, '[' .. prefix, '(' .. prefix .. '\255\255\255\255\255\255\255', 'LIMIT', 0, count)
end

-- Groups, whose jobs take turns. A turn is a field of the hash of turns: the job's id, with the
-- number of turns of its group and the group's key.
-- keys  blocked, turns (hash), taken (hash: number of turns taken, by group), totals

local function turn_value(most, group)
  return struct.pack('>I', most) .. group
end

-- Gives the job a turn, if one is free and no other waits; otherwise puts it in line. Returns
-- whether it has one.
local function join_group(keys, job, most, group)
  local taken = tonumber(redis.call('HGET', keys.taken, group) or 0)
  if taken < most and #first_of(keys.blocked, 'group:' .. group, 1) == 0 then
    redis.call('HINCRBY', keys.taken, group, 1)
    redis.call('HSET', keys.turns, tag_of(job), turn_value(most, group))
    return true
  end
  -- Behind all that were pushed before, whatever the clocks.
  local order = redis.call('HINCRBY', keys.totals, 'lined', 1)
  redis.call('ZADD', keys.blocked, 0, blocked_member('group:' .. group, time_order(order), job))
  return false
end

-- Ends the turn of a job, if it has one. Returns the next job of its group, which has the turn now.
local function end_turn(keys, tag)
  local turn = redis.call('HGET', keys.turns, tag)
  if not turn then return nil end
  redis.call('HDEL', keys.turns, tag)
  local group = string.sub(turn, 5)
  local first = first_of(keys.blocked, 'group:' .. group, 1)[1]
  if first then
    redis.call('ZREM', keys.blocked, first)
    local job = job_of(first)
    redis.call('HSET', keys.turns, tag_of(job), turn)
    return job
  end
  if redis.call('HINCRBY', keys.taken, group, -1) <= 0 then redis.call('HDEL', keys.taken, group) end
  return nil
end
