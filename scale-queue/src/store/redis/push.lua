-- Stores jobs, all or none.
-- KEYS  waiting, scheduled, sleepers, paused, large, high, low, cancelled, blocked, turns, taken,
--       totals, then for each job that needs keys its once key, its unique key and its debounce key
-- ARGV  wake channel, queue, 1 in a Cluster, 1 if a job is large, number of plain jobs, the plain
--       jobs, which have no priority either, then for each other job: the job, delay (ms), life of
--       its once key and of its unique key (ms; 0: no such key), longest delay since its first push
--       (ms; 0: it is not debounced), number of turns of its group and the group's key (0, '': none)
-- Reply server time (ms), then for each other job: '' if it is stored, or the id that holds its key
-- Cost  one RPUSH for 4,000 plain jobs; SET and RPUSH or ZADD for each other job; ZPOPMAX and
--       PUBLISH for each worker woken
local cluster = ARGV[3] == '1'
local plain = tonumber(ARGV[5])
local ready, earlier = plain, 0
local now = clock()
local reply = { now }
if plain > 0 then chunked('RPUSH', KEYS[1], ARGV, 6, 5 + plain) end
if ARGV[4] == '1' then redis.call('SET', KEYS[5], 1, 'PX', 86400000) end
local groups = { blocked = KEYS[9], turns = KEYS[10], taken = KEYS[11], totals = KEYS[12] }
local key = 13
for i = 6 + plain, #ARGV, 7 do
  local job, delay = ARGV[i], tonumber(ARGV[i + 1])
  local id, holder, taken = string.sub(job, 2, 17), '', {}
  for n = i + 2, i + 3 do
    local life = tonumber(ARGV[n])
    if life > 0 then
      if holder == '' then
        if redis.call('SET', KEYS[key], id, 'NX', 'PX', life) then
          taken[#taken + 1] = KEYS[key]
        else
          holder = redis.call('GET', KEYS[key])
        end
      end
      key = key + 1
    end
  end
  if holder ~= '' and #taken > 0 then redis.call('DEL', unpack(taken)) end
  local at_most = tonumber(ARGV[i + 4])
  if holder == '' and at_most > 0 then
    -- The key holds the due time and the scheduled job, as it is in the set: a job that has run and
    -- is scheduled again has another time.
    local value = redis.call('GET', KEYS[key]) or ''
    local old = string.sub(value, 15)
    local due = value ~= '' and redis.call('ZSCORE', KEYS[2], old)
    if due and tonumber(due) > now and tonumber(due) == tonumber(string.sub(value, 1, 14)) then
      redis.call('ZREM', KEYS[2], old)
      holder = string.sub(old, 2, 17)
      -- The new content was not cancelled.
      redis.call('ZREM', KEYS[8], holder)
      job = string.sub(job, 1, 1) .. holder .. string.sub(job, 18, 19) .. string.sub(old, 20, 25) .. string.sub(job, 26)
      local high, low = struct.unpack('>HI', string.sub(old, 20, 25))
      delay = math.max(math.min(delay, high * 4294967296 + low + at_most - now), 1)
    end
    redis.call('SET', KEYS[key], string.format('%014d', now + delay) .. job, 'PX', delay + 1000)
    redis.call('ZADD', KEYS[2], now + delay, job)
    earlier = 2
  elseif holder == '' and (ARGV[i + 5] == '0' or join_group(groups, job, tonumber(ARGV[i + 5]), ARGV[i + 6])) then
    if delay > 0 then
      local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
      -- Two workers set alarms for this job, the second one a second later, in case the first one
      -- dies.
      if not first or now + delay < tonumber(first) then earlier = 2 end
      redis.call('ZADD', KEYS[2], now + delay, job)
    else
      redis.call('RPUSH', list_of(job, KEYS[6], KEYS[1], KEYS[7]), job)
      ready = ready + 1
    end
  end
  if at_most > 0 then key = key + 1 end
  reply[#reply + 1] = holder
end
if redis.call('EXISTS', KEYS[4]) == 0 then
  wake(KEYS[3], ARGV[1], ARGV[2], math.max(math.min(ready, 1000), earlier), cluster)
end
return reply
