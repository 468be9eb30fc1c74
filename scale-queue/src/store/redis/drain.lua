-- Removes jobs that wait, then jobs that are scheduled.
-- KEYS  waiting, scheduled
-- ARGV  how many at most
-- Reply the jobs
-- Cost  O(jobs removed)
local jobs = redis.call('LPOP', KEYS[1], ARGV[1]) or {}
local left = tonumber(ARGV[1]) - #jobs
if left > 0 then
  local scheduled = redis.call('ZPOPMIN', KEYS[2], left)
  for i = 1, #scheduled, 2 do jobs[#jobs + 1] = scheduled[i] end
end
return jobs
