-- Gives a tag a new version, above the old one even if the clock was set back, and notifies all
-- processes.
-- KEYS  tag
-- ARGV  lifetime (ms), channel, tag, a database position or '', id of the sender
-- Reply version (us), and ':' and the position if there is one: the old or the new one, whichever is
--       later byte by byte
-- Cost  GET, TIME, SET, PUBLISH; O(processes), regardless of the number of entries with the tag
local function later(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x > y and a or b end
  end
  return #a > #b and a or b
end
-- DEL comes first: a full Redis lets a script finish after its first write command.
local old = redis.call('GET', KEYS[1]) or '0'
redis.call('DEL', KEYS[1])
local time = redis.call('TIME')
local position = ARGV[4]
local colon = string.find(old, ':', 1, true)
if colon then
  position = later(position, string.sub(old, colon + 1))
  old = string.sub(old, 1, colon - 1)
end
local version = string.format('%.0f', math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), (tonumber(old) or 0) + 1))
local stored = position == '' and version or version .. ':' .. position
redis.call('SET', KEYS[1], stored, 'PX', ARGV[1])
redis.call('PUBLISH', ARGV[2], ARGV[5] .. 't' .. version .. ':' .. #ARGV[3] .. ':' .. ARGV[3] .. position)
return stored
