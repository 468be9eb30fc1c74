-- Reclaims jobs of a worker whose lease has expired or is missing; called until none is left.
-- KEYS  promoted, sleepers, paused, leases, held by that worker, totals, suspects, unbegun, trials,
--       blocked, turns, taken, drained, waiting, high, low, returning: groups whose jobs come back
--       from the worker, which was a drain
-- ARGV  wake channel, queue, 1 in a Cluster, that worker, cursor (0 at first)
-- Reply number of jobs reclaimed in this step, next cursor, number of jobs left
-- Cost  about 100 jobs per step; of a hash with many empty buckets, as while Redis saves, up to
--       10,000 buckets per step
local now = clock()
local worker = ARGV[4]
local groups = { blocked = KEYS[10], turns = KEYS[11], taken = KEYS[12], drained = KEYS[13], totals = KEYS[6] }
local score = redis.call('ZSCORE', KEYS[4], worker)
if score and tonumber(score) > now then return { 0, '0', 0 } end
local unbegun = {}
local tags = redis.call('HGET', KEYS[8], worker) or ''
for from = 1, #tags, 16 do unbegun[string.sub(tags, from, from + 15)] = true end
-- '!': the suspect that ran alone was reclaimed in an earlier step, or is of another queue.
local trial = redis.call('HGET', KEYS[9], worker)
if trial and trial ~= '!' and redis.call('HEXISTS', KEYS[5], trial) == 0 then trial = false end
local cursor, moved, failed = ARGV[5], 0, 0
-- A step of HSCAN may find nothing although jobs are left: only a cursor of 0 marks the end.
for _ = 1, 100 do
  local page = redis.call('HSCAN', KEYS[5], cursor, 'COUNT', 100)
  cursor = page[1]
  local held = page[2]
  for i = 1, #held, 2 do
    local tag, job = held[i], held[i + 1]
    -- HSCAN may return an entry twice while the table shrinks.
    if redis.call('HDEL', KEYS[5], tag) == 1 then
      moved = moved + 1
      local is_suspect
      if trial then is_suspect = trial == tag else is_suspect = not unbegun[tag] end
      if is_suspect then
        failed = failed + 1
        if trial then redis.call('HSET', KEYS[9], worker, '!') end
        if #job >= 19 then
          -- The highest bit marks a suspect, and stays with the job.
          local count = 32768 + math.min(struct.unpack('>H', string.sub(job, 18, 19)) % 32768 + 1, 32767)
          job = string.sub(job, 1, 17) .. struct.pack('>H', count) .. string.sub(job, 20)
        end
        redis.call('RPUSH', KEYS[7], job)
      else
        -- Not behind its line: the job may have been the first in it, and then no other would be
        -- tried.
        local group = back_in_line(groups, job)
        if group then
          redis.call('SADD', KEYS[17], group)
        else
          redis.call('LPUSH', KEYS[1], job)
        end
      end
    end
  end
  if cursor == '0' or moved >= 100 then break end
end
local left = redis.call('HLEN', KEYS[5])
if left == 0 then
  -- Not before all are back: they come in no order.
  for _, group in ipairs(redis.call('SMEMBERS', KEYS[17])) do
    for _, next in ipairs(give_turns(groups, group)) do
      redis.call('RPUSH', list_of(next, KEYS[15], KEYS[14], KEYS[16]), next)
    end
  end
  redis.call('DEL', KEYS[17])
  redis.call('ZREM', KEYS[4], worker)
  redis.call('HDEL', KEYS[8], worker)
  redis.call('HDEL', KEYS[9], worker)
end
if failed > 0 then redis.call('HINCRBY', KEYS[6], 'failed', failed) end
if moved > 0 and redis.call('EXISTS', KEYS[3]) == 0 then wake(KEYS[2], ARGV[1], ARGV[2], moved, ARGV[3] == '1') end
return { moved, cursor, left }
