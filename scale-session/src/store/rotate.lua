-- Replaces a session's proof, unless another request has replaced it. The previous proof is valid
-- until the client has sent the new one, and for a grace period afterwards.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  current proof, next proof, number of previous proofs to keep
-- Reply 'done', 'stale', 'frozen' or 'gone'
-- Cost  HMGET, HSET; O(1)
if revoked() then return 'gone' end
local held = redis.call('HMGET', KEYS[1], '\0proofs', '\0frozen')
if not held[1] then return 'gone' end
if held[2] then return 'frozen' end
local parts = {}
for part in string.gmatch(held[1], '[^;]+') do parts[#parts + 1] = part end
if parts[1] ~= ARGV[1] then return 'stale' end
local now = clock()
local proofs = { ARGV[2], ARGV[1] .. '@?' }
for i = 2, #parts do
  local ends = string.match(parts[i], '@(.+)$')
  if #proofs <= tonumber(ARGV[3]) and (ends == '?' or tonumber(ends) > now) then proofs[#proofs + 1] = parts[i] end
end
redis.call('HSET', KEYS[1], '\0proofs', table.concat(proofs, ';'))
return 'done'
