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

-- Groups, whose jobs take turns.
-- keys  blocked, turns (hash: group by the id of a job that has a turn), taken (hash: 'c' and the
--       group: number of turns taken; 'n' and the group: number of turns, that of the job with which
--       the group began), drained (hash: place in line of jobs that a drain holds, by id), totals

-- Gives free turns of a group to the first jobs in its line; returns those jobs.
local function give_turns(keys, group)
  local taken = tonumber(redis.call('HGET', keys.taken, 'c' .. group) or 0)
  local number = tonumber(redis.call('HGET', keys.taken, 'n' .. group) or 1)
  local jobs = {}
  while taken < number do
    local first = first_of(keys.blocked, 'group:' .. group, 1)[1]
    if not first then break end
    redis.call('ZREM', keys.blocked, first)
    local job = job_of(first)
    redis.call('HSET', keys.turns, tag_of(job), group)
    taken = taken + 1
    jobs[#jobs + 1] = job
  end
  if taken > 0 then
    redis.call('HSET', keys.taken, 'c' .. group, taken)
  else
    redis.call('HDEL', keys.taken, 'c' .. group, 'n' .. group)
  end
  return jobs
end

-- Gives the job a turn, if one is free and no other waits; otherwise puts it in line. Returns
-- whether it has one.
local function join_group(keys, job, number, group)
  redis.call('HSETNX', keys.taken, 'n' .. group, number)
  local taken = tonumber(redis.call('HGET', keys.taken, 'c' .. group) or 0)
  number = tonumber(redis.call('HGET', keys.taken, 'n' .. group))
  if taken < number and #first_of(keys.blocked, 'group:' .. group, 1) == 0 then
    redis.call('HSET', keys.taken, 'c' .. group, taken + 1)
    redis.call('HSET', keys.turns, tag_of(job), group)
    return true
  end
  -- Behind all that were pushed before, whatever the clocks.
  local order = redis.call('HINCRBY', keys.totals, 'lined', 1)
  redis.call('ZADD', keys.blocked, 0, blocked_member('group:' .. group, time_order(order), job))
  return false
end

-- Ends the turn of a job that is gone, if it has one. Returns the jobs that have one now.
local function end_turn(keys, tag)
  redis.call('HDEL', keys.drained, tag)
  local group = redis.call('HGET', keys.turns, tag)
  if not group then return {} end
  redis.call('HDEL', keys.turns, tag)
  redis.call('HINCRBY', keys.taken, 'c' .. group, -1)
  return give_turns(keys, group)
end

-- Remembers the place in line of a job that a drain takes.
local function drain_member(keys, member)
  local length = struct.unpack('>H', member)
  local line = string.sub(member, 3, 2 + length)
  if string.sub(line, 1, 6) ~= 'group:' then return end
  local group = string.sub(line, 7)
  local number = tonumber(redis.call('HGET', keys.taken, 'n' .. group) or 1)
  local order = string.sub(member, 3 + length, 8 + length)
  redis.call('HSET', keys.drained, tag_of(job_of(member)), order .. struct.pack('>I', number) .. group)
end

-- Puts a job that comes back from a drain into its line again, at its place. Returns the key of its
-- group, or nil if it was in none.
local function back_in_line(keys, job)
  local place = redis.call('HGET', keys.drained, tag_of(job))
  if not place then return nil end
  redis.call('HDEL', keys.drained, tag_of(job))
  local group = string.sub(place, 11)
  local number = struct.unpack('>I', string.sub(place, 7, 10))
  redis.call('HSETNX', keys.taken, 'n' .. group, number)
  redis.call('ZADD', keys.blocked, 0, blocked_member('group:' .. group, string.sub(place, 1, 6), job))
  return group
end
