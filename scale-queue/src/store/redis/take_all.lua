-- Leases waiting, blocked and scheduled jobs, due or not, for a drain.
-- KEYS  waiting, promoted, suspects, blocked, lines, paces, unhandled, scheduled, leases, held by
--       this worker, unbegun, high, low, taken, drained
-- ARGV  worker, lease (ms), maximum number of jobs, bytes after which no further job is taken
-- Reply the jobs
-- Cost  O(jobs taken)
local most, budget = tonumber(ARGV[3]), tonumber(ARGV[4])
local jobs, bytes, unbegun = {}, 0, {}
local groups = { taken = KEYS[14], drained = KEYS[15] }
redis.call('HDEL', KEYS[11], ARGV[1])

local function take(job)
  redis.call('HSET', KEYS[10], tag_of(job), job)
  jobs[#jobs + 1] = job
  bytes = bytes + #job
  if #tag_of(job) == 16 then unbegun[#unbegun + 1] = tag_of(job) end
end

local function has_room()
  return #jobs < most and bytes < budget
end

for _, list in ipairs({ 1, 2, 3, 12, 13 }) do
  while has_room() do
    local job = redis.call('LPOP', KEYS[list])
    if not job then break end
    take(job)
  end
end
while has_room() do
  local popped = redis.call('ZPOPMIN', KEYS[4])
  if not popped[1] then
    redis.call('DEL', KEYS[5], KEYS[6], KEYS[7])
    break
  end
  drain_member(groups, popped[1])
  take(job_of(popped[1]))
end
while has_room() do
  local popped = redis.call('ZPOPMIN', KEYS[8])
  if not popped[1] then break end
  take(popped[1])
end
if #jobs > 0 then
  redis.call('ZADD', KEYS[9], clock() + tonumber(ARGV[2]), ARGV[1])
  redis.call('HSET', KEYS[11], ARGV[1], table.concat(unbegun))
end
return jobs
