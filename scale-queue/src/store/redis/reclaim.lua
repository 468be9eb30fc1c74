-- Takes back jobs of a worker whose lease has run out; called until it answers 0.
-- KEYS  waiting, sleepers, paused, leases, held by the expired worker, totals
-- ARGV  wake channel, queue, 1 in a Cluster, the expired worker
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
for i = 1, #held, 2 do
  local tag, job = held[i], held[i + 1]
  redis.call('HDEL', KEYS[5], tag)
  if #job >= 19 then
    local failed = math.min(struct.unpack('>H', string.sub(job, 18, 19)) + 1, 65535)
    job = string.sub(job, 1, 17) .. struct.pack('>H', failed) .. string.sub(job, 20)
  end
  redis.call('LPUSH', KEYS[1], job)
end
redis.call('HINCRBY', KEYS[6], 'failed', #held / 2)
if redis.call('EXISTS', KEYS[3]) == 0 then wake(KEYS[2], ARGV[1], ARGV[2], #held / 2, ARGV[3] == '1') end
return #held / 2
