-- Reads a page of a list or sorted set, which ends when it has enough bytes.
-- KEYS  the list or sorted set
-- ARGV  'LRANGE' or 'ZRANGE', first, count, bytes after which the page ends
-- Reply the members; of a sorted set each with its score
-- Cost  O(first) for a list, O(log n) for a set, and the page; in steps of ten, so that only few
--       large members are read
local first, left, budget, bytes = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), 0
local reply = {}
while left > 0 and bytes < budget do
  local last = first + math.min(left, 10) - 1
  local page
  if ARGV[1] == 'ZRANGE' then
    page = redis.call('ZRANGE', KEYS[1], first, last, 'WITHSCORES')
  else
    page = redis.call('LRANGE', KEYS[1], first, last)
  end
  local step = ARGV[1] == 'ZRANGE' and 2 or 1
  if #page == 0 then break end
  for n = 1, #page, step do
    if bytes >= budget then break end
    bytes = bytes + #page[n]
    for i = n, n + step - 1 do reply[#reply + 1] = page[i] end
  end
  first, left = last + 1, left - 10
end
return reply
