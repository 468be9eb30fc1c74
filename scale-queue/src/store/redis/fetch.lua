-- Removes what is done, lets what is due wait, leases what is waiting; arms the worker if that was less than it asked for.
-- KEYS  waiting, scheduled, sleepers, paused, leases, held by this worker, totals, timer, cancelled
-- ARGV  wake channel, queue, 1 in a Cluster, worker, most jobs (at most 1,000), lease (ms), 1 if the worker holds others,
--       tags of jobs that are done
-- Reply server time (ms), how many of the done were still held, 1 if armed, ms until the next look (-1: none needed),
--       a worker whose lease has run out or '', ids of the cancelled among the jobs, then the jobs
-- Cost  O(jobs moved), at most 1,000 promoted and 1,000 leased; whatever the backlog
local cluster = ARGV[3] == '1'
local worker, most, lease = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local now = clock()
local removed = 0
if #ARGV >= 8 then
  removed = chunked('HDEL', KEYS[6], ARGV, 8, #ARGV)
  if removed > 0 then redis.call('HINCRBY', KEYS[7], 'done', removed) end
end

if most == 0 then
  -- Only settling: the lease is renewed by the next beat.
  return { now, removed, 0, -1, '', '' }
end

local due = redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, 1000)
if #due > 0 then
  redis.call('ZREM', KEYS[2], unpack(due))
  redis.call('RPUSH', KEYS[1], unpack(due))
end

local reply = { now, removed, 0, -1, '', '' }
local paused = redis.call('EXISTS', KEYS[4]) == 1
local count = 0
if not paused then
  local jobs = redis.call('LPOP', KEYS[1], most)
  if jobs then
    count = #jobs
    local fields, n = {}, 0
    for i = 1, count do
      local job = jobs[i]
      reply[6 + i] = job
      fields[n + 1] = #job >= 17 and string.sub(job, 2, 17) or job
      fields[n + 2] = job
      n = n + 2
    end
    chunked('HSET', KEYS[6], fields, 1, n)
    if redis.call('EXISTS', KEYS[9]) == 1 then
      local ended = {}
      for i = 1, n, 2 do
        if redis.call('ZSCORE', KEYS[9], fields[i]) then ended[#ended + 1] = fields[i] end
      end
      reply[6] = table.concat(ended)
    end
  end
end

-- The first write above or this one may meet a full store: a removal comes first, after which Redis lets a script finish.
redis.call('ZREM', KEYS[5], worker)
if count > 0 or ARGV[7] == '1' then redis.call('ZADD', KEYS[5], now + lease, worker) end

if count < most then
  redis.call('ZADD', KEYS[3], now, worker)
  reply[3] = 1
  local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
  local oldest = redis.call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')
  if oldest[1] and tonumber(oldest[2]) <= now then
    reply[5] = oldest[1]
  elseif oldest[1] and (not first or tonumber(oldest[2]) < tonumber(first)) then
    first = oldest[2]
  end
  if first then
    -- One sleeper sets its alarm for it, the others a second later: should that one die, they are there.
    first = tonumber(first)
    local timer = redis.call('GET', KEYS[8])
    if timer ~= string.format('%d', first) .. worker and timer and string.sub(timer, 1, 13) == string.format('%d', first) then
      first = first + 1000
    else
      redis.call('SET', KEYS[8], string.format('%d', first) .. worker, 'PX', math.max(first - now, 0) + 1000)
    end
    reply[4] = math.max(first - now, 0)
  end
else
  redis.call('ZREM', KEYS[3], worker)
  -- What became due may be more than this worker takes.
  if #due > 0 and not paused then wake(KEYS[3], ARGV[1], ARGV[2], math.min(#due, redis.call('LLEN', KEYS[1])), cluster) end
end
return reply
