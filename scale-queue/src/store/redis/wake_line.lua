-- Moves the first job in line to the promoted jobs, and wakes a worker for it.
-- KEYS  promoted, sleepers, paused, blocked, lines, paces, cancelled
-- ARGV  wake channel, queue, 1 in a Cluster, line
-- Reply 1, 0 if there is no such line, or 2 if the queue is paused: then nothing is moved
-- Cost  O(log blocked); cancelled jobs, which need no permit, are moved too, at most 20
if redis.call('EXISTS', KEYS[3]) == 1 and #first_of(KEYS[4], ARGV[4], 1) > 0 then return 2 end
local moved = 0
for _ = 1, 20 do
  local members = first_of(KEYS[4], ARGV[4], 2)
  if #members < 2 then
    redis.call('ZREM', KEYS[5], ARGV[4])
    redis.call('HDEL', KEYS[6], ARGV[4])
  end
  if #members == 0 then break end
  local job = job_of(members[1])
  redis.call('ZREM', KEYS[4], members[1])
  redis.call('RPUSH', KEYS[1], job)
  moved = moved + 1
  if redis.call('EXISTS', KEYS[7]) == 0 or not redis.call('ZSCORE', KEYS[7], tag_of(job)) then break end
end
if moved == 0 then return 0 end
if redis.call('EXISTS', KEYS[3]) == 0 then wake(KEYS[2], ARGV[1], ARGV[2], 1, ARGV[3] == '1') end
return 1
