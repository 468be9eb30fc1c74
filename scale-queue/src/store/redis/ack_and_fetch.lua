-- Removes completed jobs, moves due jobs to the waiting ones, and leases jobs; arms the worker if
-- it got fewer than requested.
-- KEYS  waiting, scheduled, sleepers, paused, leases, held by this worker, totals, timer,
--       cancelled, promoted, suspects, blocked, lines, paces, unhandled, unbegun, trials, large,
--       mark that the worker has left, watcher: the idle worker with an alarm for the leases of
--       others, high, low
-- ARGV  wake channel, queue, 1 in a Cluster, worker, maximum number of jobs (at most 1,000), lease
--       (ms), bytes after which no further job is taken, number of the jobs that begin at once,
--       trial ('running:' and the tag of the suspect that runs alone, 'waiting:' and the tag of a
--       suspect that has not begun, 'elsewhere', 'none' or 'next'), time for which jobs may be
--       unhandled (ms), number of handler lines, their names, tags of completed jobs
-- Reply server time (ms), number of completed jobs that were still held, 1 if armed, ms until the
--       next look (-1: none needed), a worker whose lease has expired or '', ids of the cancelled
--       jobs among the returned, ids of the overdue ones, 1 if the job is a suspect, names of
--       handler lines, 1 if the queue has lines, the jobs
-- Cost  O(jobs moved), at most 1,000 promoted and 1,000 leased or put in line; independent of the
--       backlog
local cluster = ARGV[3] == '1'
local worker, most, lease = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local budget, begins, trial = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]
local names = tonumber(ARGV[11])
local now = clock()
-- A delayed call leases nothing to a worker that has left.
if redis.call('EXISTS', KEYS[19]) == 1 then most, trial = 0, 'none' end
-- Removals first: a full Redis lets a script finish that has begun to write. Jobs fetched before
-- this call may begin now.
redis.call('HDEL', KEYS[16], worker)
if string.sub(trial, 1, 8) == 'waiting:' then redis.call('HSET', KEYS[16], worker, string.sub(trial, 9)) end
if trial == 'elsewhere' then
  redis.call('HSET', KEYS[17], worker, '!')
elseif string.sub(trial, 1, 8) == 'running:' then
  redis.call('HSET', KEYS[17], worker, string.sub(trial, 9))
else
  redis.call('HDEL', KEYS[17], worker)
end
local removed = 0
if #ARGV >= 12 + names then
  removed = chunked('HDEL', KEYS[6], ARGV, 12 + names, #ARGV)
  if removed > 0 then redis.call('HINCRBY', KEYS[7], 'done', removed) end
end

local function keep_lease()
  redis.call('ZREM', KEYS[5], worker)
  if redis.call('HLEN', KEYS[6]) > 0 then redis.call('ZADD', KEYS[5], now + lease, worker) end
end

if most == 0 then
  keep_lease()
  return { now, removed, 0, -1, '', '', '', 0, {}, redis.call('EXISTS', KEYS[13]), {} }
end

local due = redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, 1000)
local ranked = redis.call('EXISTS', KEYS[21], KEYS[22]) > 0
if #due > 0 then
  redis.call('ZREM', KEYS[2], unpack(due))
  local plain = {}
  for _, job in ipairs(due) do
    local list = list_of(job, KEYS[21], KEYS[1], KEYS[22])
    if list == KEYS[1] then
      plain[#plain + 1] = job
    else
      redis.call('RPUSH', list, job)
      ranked = true
    end
  end
  if #plain > 0 then redis.call('RPUSH', KEYS[1], unpack(plain)) end
end

local paused = redis.call('EXISTS', KEYS[4]) == 1
local jobs, fields, count, bytes, overdue = {}, {}, 0, 0, {}
local suspect, more = false, false

local function take(job)
  count = count + 1
  jobs[count] = job
  fields[2 * count - 1] = tag_of(job)
  fields[2 * count] = job
  bytes = bytes + #job
end

local function has_room()
  return count < most and (bytes < budget or count == 0)
end

-- Takes jobs from the head of a line; returns whether the line is empty now.
local function take_first(line, wanted)
  while wanted > 0 and has_room() do
    local step = math.min(wanted, 50)
    local members = first_of(KEYS[12], line, step)
    for _, member in ipairs(members) do
      if not has_room() then return false end
      redis.call('ZREM', KEYS[12], member)
      take(job_of(member))
    end
    if #members < step then return true end
    wanted = wanted - #members
  end
  return #first_of(KEYS[12], line, 1) == 0
end

local function drop_line(line)
  redis.call('ZREM', KEYS[13], line)
  redis.call('HDEL', KEYS[14], line)
  redis.call('SREM', KEYS[15], line)
end

if not paused then
  if trial == 'next' then
    local job = redis.call('LPOP', KEYS[11])
    if job then
      take(job)
      -- Recorded as not begun until the worker reports that it begins.
      redis.call('HSET', KEYS[16], worker, tag_of(job))
      suspect = true
    end
  end
  local lined = not suspect and redis.call('ZCARD', KEYS[13]) > 0
  if lined then
    for n = 1, names do
      local line = ARGV[11 + n]
      if redis.call('SISMEMBER', KEYS[15], line) == 1 and take_first(line, most) then drop_line(line) end
    end
    for _, line in ipairs(redis.call('ZRANGE', KEYS[13], '-inf', now, 'BYSCORE', 'LIMIT', 0, 20)) do
      if not has_room() then break end
      if redis.call('SISMEMBER', KEYS[15], line) == 1 then
        -- Of a handler line only the jobs that have waited for too long.
        local prefix = line_prefix(line)
        local old = redis.call('ZRANGEBYLEX', KEYS[12], '[' .. prefix, '(' .. prefix .. time_order(now - tonumber(ARGV[10]) + 1), 'LIMIT', 0, 50)
        for _, member in ipairs(old) do
          if not has_room() then break end
          redis.call('ZREM', KEYS[12], member)
          take(job_of(member))
          overdue[#overdue + 1] = tag_of(jobs[count])
        end
        if #first_of(KEYS[12], line, 1) == 0 then
          drop_line(line)
        else
          redis.call('ZADD', KEYS[13], #old < 50 and now + math.min(60000, tonumber(ARGV[10])) or now, line)
        end
      else
        local pace = tonumber(redis.call('HGET', KEYS[14], line) or 0)
        local at = tonumber(redis.call('ZSCORE', KEYS[13], line))
        local wanted = 1
        if pace > 0 then wanted = math.min(math.floor((now - at) / pace) + 1, 100) end
        local before = count
        if take_first(line, wanted) then
          drop_line(line)
        else
          redis.call('ZADD', KEYS[13], pace > 0 and at + pace * (count - before) or now + 30000, line)
        end
      end
    end
    while has_room() do
      local job = redis.call('LPOP', KEYS[10])
      if not job then break end
      take(job)
    end
  elseif not suspect and redis.call('EXISTS', KEYS[10]) == 1 then
    while has_room() do
      local job = redis.call('LPOP', KEYS[10])
      if not job then break end
      take(job)
    end
  end
  if not suspect and has_room() then
    local careful = redis.call('EXISTS', KEYS[18]) == 1
    local pops, seen_large = 0, false
    for _, list in ipairs(ranked and { KEYS[21], KEYS[1], KEYS[22] } or { KEYS[1] }) do
      if not careful and not lined then
        local popped = count < most and redis.call('LPOP', list, most - count)
        for _, job in ipairs(popped or {}) do take(job) end
      else
        while pops < 1000 and has_room() do
          local job = redis.call('LPOP', list)
          if not job then break end
          pops = pops + 1
          seen_large = seen_large or #job > 16384
          local group = lined and group_of(job) or ''
          if group ~= '' and redis.call('ZSCORE', KEYS[13], 'limit:' .. group) then
            redis.call('ZADD', KEYS[12], 0, blocked_member('limit:' .. group, pushed_order(job), job))
          else
            take(job)
          end
        end
      end
    end
    more = redis.call('EXISTS', KEYS[1]) == 1 or ranked and redis.call('EXISTS', KEYS[21], KEYS[22]) > 0
    if careful and not more then
      redis.call('DEL', KEYS[18])
    elseif seen_large then
      redis.call('PEXPIRE', KEYS[18], 86400000)
    end
  end
end

local cancelled = {}
if count > 0 then
  chunked('HSET', KEYS[6], fields, 1, 2 * count)
  if not suspect and count > begins then
    local unbegun = {}
    for n = begins + 1, count do
      if #fields[2 * n - 1] == 16 then unbegun[#unbegun + 1] = fields[2 * n - 1] end
    end
    redis.call('HSET', KEYS[16], worker, table.concat(unbegun))
  end
  if redis.call('EXISTS', KEYS[9]) == 1 then
    for n = 1, count do
      local tag = fields[2 * n - 1]
      if redis.call('ZSCORE', KEYS[9], tag) then cancelled[#cancelled + 1] = tag end
    end
  end
end
keep_lease()
-- If this worker dies, an idle worker must know of its lease. A worker that became idle earlier
-- does not.
if count > 0 then
  local watcher = redis.call('GET', KEYS[20])
  if not watcher or watcher == worker then wake(KEYS[3], ARGV[1], ARGV[2], 1, cluster) end
end

-- Every fetch checks for expired leases, however long the backlog; leases of workers that hold
-- nothing are removed at once.
local expired, first_lease = '', nil
local holders = redis.call('ZRANGE', KEYS[5], 0, 19, 'WITHSCORES')
for n = 1, #holders, 2 do
  if tonumber(holders[n + 1]) > now then
    first_lease = tonumber(holders[n + 1])
    break
  end
  if holders[n] ~= worker then
    if redis.call('EXISTS', string.sub(KEYS[6], 1, #KEYS[6] - #worker) .. holders[n]) == 1 then
      expired = holders[n]
      break
    end
    redis.call('ZREM', KEYS[5], holders[n])
    redis.call('HDEL', KEYS[16], holders[n])
    redis.call('HDEL', KEYS[17], holders[n])
  end
end

local unhandled = not paused and redis.call('EXISTS', KEYS[15]) == 1 and redis.call('SRANDMEMBER', KEYS[15], 100) or {}
local armed, wait = 0, -1
if count < most and not more and not suspect then
  armed = 1
  redis.call('ZADD', KEYS[3], now, worker)
  local first = tonumber(redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2])
  if first_lease and redis.call('HLEN', KEYS[6]) == 0 then
    local watcher = redis.call('GET', KEYS[20])
    if not watcher or watcher == worker then redis.call('SET', KEYS[20], worker, 'PX', first_lease - now + 1000) end
  end
  if first_lease and (not first or first_lease < first) then first = first_lease end
  local line = not paused and tonumber(redis.call('ZRANGE', KEYS[13], 0, 0, 'WITHSCORES')[2])
  if line and (not first or line < first) then first = math.ceil(line) end
  if first then
    -- One idle worker sets its alarm for that time, the others a second later, in case the first
    -- one dies.
    local timer = redis.call('GET', KEYS[8])
    if timer ~= string.format('%d', first) .. worker and timer and string.sub(timer, 1, 13) == string.format('%d', first) then
      first = first + 1000
    else
      redis.call('SET', KEYS[8], string.format('%d', first) .. worker, 'PX', math.max(first - now, 0) + 1000)
    end
    wait = math.max(first - now, 0)
  end
else
  redis.call('ZREM', KEYS[3], worker)
  -- More jobs may have become due than this worker takes, and another worker has to watch for the
  -- next due time.
  if #due > 0 and not paused then
    local left = redis.call('LLEN', KEYS[1]) + redis.call('LLEN', KEYS[21]) + redis.call('LLEN', KEYS[22])
    local most_wakes = math.min(#due, left) + redis.call('EXISTS', KEYS[2])
    wake(KEYS[3], ARGV[1], ARGV[2], most_wakes, cluster)
  end
end
return { now, removed, armed, wait, expired, table.concat(cancelled), table.concat(overdue), suspect and 1 or 0, unhandled, redis.call('EXISTS', KEYS[13]), jobs }
