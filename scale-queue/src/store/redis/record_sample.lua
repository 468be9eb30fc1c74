-- Records the sample of a minute or hour, if there is none yet, and removes samples that are too
-- old.
-- KEYS  samples by their time
-- ARGV  time (ms), sample, step (ms), maximum number of samples
-- Reply 1, or 0 if there was one
-- Cost  O(samples), at most 2,160, when there are too many
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[4]) then
  local oldest = tonumber(ARGV[1]) - tonumber(ARGV[3]) * tonumber(ARGV[4])
  for _, at in ipairs(redis.call('HKEYS', KEYS[1])) do
    if tonumber(at) <= oldest then redis.call('HDEL', KEYS[1], at) end
  end
end
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[3]) * tonumber(ARGV[4]))
return 1
