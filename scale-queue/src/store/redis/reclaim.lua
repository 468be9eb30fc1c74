-- Takes back jobs of a worker whose lease has run out; called until it answers 0.
-- KEYS  waiting, sleepers, paused, leases, held by the expired worker, totals, dead
-- ARGV  wake channel, queue, 1 in a Cluster, the expired worker, most crashes, the reason for more, most dead, their age (ms)
-- Reply how many were taken back in this step
-- Cost  about 100 jobs a step
local now = clock()
local score = redis.call('ZSCORE', KEYS[4], ARGV[4])
if score and tonumber(score) > now then return 0 end
local held = redis.call('HSCAN', KEYS[5], '0', 'COUNT', 100)[2]
if #held == 0 then
  redis.call('ZREM', KEYS[4], ARGV[4])
  return 0
end
local back = 0
for i = 1, #held, 2 do
  local tag, job = held[i], held[i + 1]
  redis.call('HDEL', KEYS[5], tag)
  local failed = tonumber(ARGV[5])
  if #job >= 19 then
    failed = math.min(struct.unpack('>H', string.sub(job, 18, 19)) + 1, 65535)
    job = string.sub(job, 1, 17) .. struct.pack('>H', failed) .. string.sub(job, 20)
  end
  if failed >= tonumber(ARGV[5]) then
    bury(KEYS[7], now, ARGV[6], job, tonumber(ARGV[7]), tonumber(ARGV[8]))
  else
    redis.call('LPUSH', KEYS[1], job)
    back = back + 1
  end
end
redis.call('HINCRBY', KEYS[6], 'failed', #held / 2)
if back > 0 and redis.call('EXISTS', KEYS[3]) == 0 then wake(KEYS[2], ARGV[1], ARGV[2], back, ARGV[3] == '1') end
return #held / 2
