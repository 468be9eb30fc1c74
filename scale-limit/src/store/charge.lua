-- Rules on charges of several requests: of each request all admit, or none is charged.
-- KEYS  one for each charge, all in one slot if this is a Cluster
-- ARGV  number of kinds of charges; for each kind nine values:
--         algorithm   1 GCRA               2 window               3 places
--         x           us per unit          us per slot            us until a place frees itself
--         y           burst (units)        quota                  quota
--         z           us owed at most      slots that count       -
--         cost, least  units asked for, and how few will do
--         dry         1: holds back nobody
--         mode        0 charge, 1 give back, 2 debit
--         age         us since it was charged, for giving back
--       then for each request: its number of charges, and for each the kind (0 is the first) and, for places, the permit
-- Reply for each charge, by algorithm:
--         GCRA    granted (units, 0 if denied), TAT ahead of now after the charge (us); if nothing is granted also before it (us)
--         window  granted, units left, us until the cost would fit (-1: never), us until all is there again
--         places  granted, places left
-- Cost  one TIME, one MGET for a thousand keys, one write for each key charged; for places also one HGET each, and now and then one
--       HGETALL. O(charges x slots)
-- Keys  GCRA    string: for each shape of the policy in use, the last one asked first: TAT, us per unit, burst; doubles
--       window  string: for each length of slots in use: number of the newest slot, us per slot, doubles; the counters, four bytes each
--       places  hash: permit -> when it frees itself, places; '' -> places held, when the first frees itself at the earliest; doubles
-- Times are microseconds since 2025-01-01, as doubles: they hold fractions of a microsecond for centuries. They are stored as their eight
-- bytes: printing and reading numbers would cost more than all the rest.
local call, pack, unpack_binary, sub = redis.call, struct.pack, struct.unpack, string.sub
local time = call('TIME')
local now = (tonumber(time[1]) - 1735689600) * 1000000 + tonumber(time[2])
local stored
if #KEYS <= 1000 then
  stored = call('MGET', unpack(KEYS))
else
  stored = {}
  for from = 1, #KEYS, 1000 do
    local part = call('MGET', unpack(KEYS, from, math.min(from + 999, #KEYS)))
    for n = 1, #part do stored[from + n - 1] = part[n] end
  end
end

local kinds, arg = {}, 2
for i = 0, tonumber(ARGV[1]) - 1 do
  local kind = { dry = ARGV[arg + 6] == '1' }
  for n = 1, 9 do kind[n] = tonumber(ARGV[arg + n - 1]) end
  if kind[1] == 1 then
    -- A hundredth of a microsecond of rounding must not deny a unit.
    kind.worth, kind.capacity = kind[5] * kind[2], kind[3] * kind[2] + 0.01
    kind.plain = kind[8] == 0 and kind[6] == kind[5] and kind[5] > 0
    kind.shape = pack('>dd', kind[2], kind[3])
  elseif kind[1] == 2 then
    kind.format = '>dd' .. string.rep('I4', kind[4])
  end
  kinds[tostring(i)] = kind
  arg = arg + 9
end

-- What keys are after this call, so that a key that comes twice is charged twice. A key with one shape has its TAT in `tats` and its shape
-- in `shapes`; one with several has them in `buckets`, each { TAT, us per unit, burst }, and `moved` is the one that was in `tats`.
local tats, shapes, buckets, moved = {}, {}, {}, {}
local windows, places, firsts, taken = {}, {}, {}, {}
-- What a request that is denied in the end has changed: where, which, and what it was.
local undone, undo_in, undo_key, undo_value = 0, {}, {}, {}
local several

local function set(where, key, value)
  if several then
    undone = undone + 1
    undo_in[undone], undo_key[undone], undo_value[undone] = where, key, where[key]
  end
  where[key] = value
end

-- The buckets of a key that is known in another shape, or in several; the one of this kind is the first.
local function buckets_of(name, bytes, kind)
  local list = buckets[name]
  if not list then
    list = {}
    if tats[name] then
      list[1] = { tats[name], unpack_binary('>dd', shapes[name]) }
      moved[name] = list[1]
      tats[name] = nil
    elseif bytes and #bytes % 24 == 0 then
      for at = 1, #bytes, 24 do
        local tat, interval, burst = unpack_binary('>ddd', bytes, at)
        list[#list + 1] = { math.max(tat, now), interval, burst }
      end
    end
    buckets[name] = list
  end
  local own
  for n, bucket in ipairs(list) do
    if bucket[2] == kind[2] and bucket[3] == kind[3] then
      own = table.remove(list, n)
      break
    end
  end
  if not own then
    -- What has been used stays used, down to an empty bucket.
    local other = list[1]
    local ahead = other and math.min((other[1] - now) / other[2], kind[3]) * kind[2] or 0
    own = { now + ahead, kind[2], kind[3] }
    list[4] = nil
  end
  table.insert(list, 1, own)
  return list
end

-- Other shapes are charged along, down to an empty bucket.
local function charge_bucket(list, after, units)
  set(list[1], 1, after)
  for n = 2, #list do
    local bucket = list[n]
    local most = math.max(now + bucket[2] * bucket[3], bucket[1])
    set(bucket, 1, math.min(bucket[1] + units * bucket[2], most))
  end
end

local function roll(window, kept)
  -- Time going backwards stays in the newest slot.
  local newest = math.max(math.floor(now / window[2]), window[1])
  local by = math.min(newest - window[1], kept)
  if by > 0 then
    for i = kept, 1, -1 do window[i + 2] = i > by and window[i - by + 2] or 0 end
  end
  window[1] = newest
end

-- The counters of a key, { newest slot, us per slot, counters }, up to date; those of this kind are the first.
local function windows_of(name, bytes, kind)
  local kept, list = kind[4], windows[name]
  if not list then
    list = {}
    local size = 16 + 4 * kept
    if bytes and #bytes % size == 0 then
      for at = 1, #bytes, size do
        local window = { unpack_binary(kind.format, bytes, at) }
        window[kept + 3] = nil
        roll(window, kept)
        list[#list + 1] = window
      end
    end
    windows[name] = list
  end
  local own
  for n, window in ipairs(list) do
    if window[2] == kind[2] then
      own = table.remove(list, n)
      break
    end
  end
  if not own then
    own = { math.floor(now / kind[2]), kind[2] }
    for i = 1, kept do own[i + 2] = 0 end
    local other = list[1]
    if other then
      -- Each counter counts from the latest time it may stand for.
      for i = 0, kept - 1 do
        local at = math.min(now, (other[1] - i + 1) * other[2])
        local slot = math.max(own[1] - math.floor(at / own[2]), 0)
        if slot < kept then own[slot + 3] = own[slot + 3] + other[i + 3] end
      end
    end
    list[4] = nil
  end
  table.insert(list, 1, own)
  list.kind = kind
  return list
end

-- Places held of a key. What frees itself is looked for only once something must have.
local function places_of(name)
  local held = places[name]
  if not held then
    local head = call('HGET', name, '')
    local first
    if head then held, first = unpack_binary('>dd', head) else held = 0 end
    if first and first <= now then
      held, first = 0, nil
      local fields = call('HGETALL', name)
      for n = 1, #fields, 2 do
        if fields[n] ~= '' then
          local ends, weight = unpack_binary('>dd', fields[n + 1])
          if ends <= now then
            call('HDEL', name, fields[n])
          else
            held = held + weight
            if not first or ends < first then first = ends end
          end
        end
      end
    end
    places[name], firsts[name] = held, first
  end
  return held
end

local reply, r, key = {}, 0, 1
while arg <= #ARGV do
  local last = key + tonumber(ARGV[arg]) - 1
  arg = arg + 1
  local everybody, first_taken = true, #taken
  several = key < last
  undone = 0
  for i = key, last do
    local name, kind, granted = KEYS[i], kinds[ARGV[arg]], 0
    arg = arg + 1
    local algorithm, mode = kind[1], kind[8]
    if algorithm == 1 then
      local list = buckets[name]
      local tat
      if not list then
        tat = tats[name]
        if tat then
          if shapes[name] ~= kind.shape then tat = nil end
        else
          local bytes = stored[i]
          if not bytes then
            tat = now
          elseif #bytes == 24 and sub(bytes, 9) == kind.shape then
            tat = unpack_binary('>d', bytes)
            if tat < now then tat = now end
          end
        end
      end
      if not tat then
        list = buckets_of(name, stored[i], kind)
        tat = list[1][1]
      end
      local after = tat + kind.worth
      if kind.plain then
        -- The common case: a bucket that is asked.
        if after - now <= kind.capacity then granted = kind[5] end
      elseif mode == 1 then
        local back = math.max(kind.worth - kind[9], 0)
        after = math.max(tat - back, now)
        for n = 2, list and #list or 1 do
          local bucket = list[n]
          set(bucket, 1, math.max(bucket[1] - math.max(kind[5] * bucket[2] - kind[9], 0), now))
        end
        granted = kind[5]
      elseif mode == 2 then
        after = math.max(math.min(after, now + kind[4]), tat)
        granted = kind[5]
      elseif after - now <= kind.capacity then
        granted = kind[5]
      elseif kind[6] < kind[5] then
        local left = math.floor((kind.capacity - (tat - now)) / kind[2])
        if left > 0 and left >= kind[6] then
          granted, after = left, tat + left * kind[2]
        end
      end
      -- Redis cuts fractions off: down before, up after.
      r = r + 2
      reply[r - 1], reply[r] = granted, after - now + 0.999
      if granted == 0 then
        r = r + 1
        reply[r] = tat - now
        if kind[5] > 0 and not kind.dry then everybody = false end
      elseif not list then
        if several then
          undone = undone + 1
          undo_in[undone], undo_key[undone], undo_value[undone] = tats, name, tats[name]
        end
        tats[name], shapes[name] = after, kind.shape
      elseif mode == 1 then
        set(list[1], 1, after)
      else
        charge_bucket(list, after, granted)
      end
    elseif algorithm == 2 then
      local list, kept = windows_of(name, stored[i], kind), kind[4]
      local window = list[1]
      local used = 0
      for n = 3, kept + 2 do used = used + window[n] end
      local left = math.max(kind[3] - used, 0)
      local retry = 0
      if mode == 1 then
        for _, window in ipairs(list) do
          local slot = window[1] - math.floor((now - kind[9]) / window[2])
          if slot < kept then set(window, slot + 3, math.max(window[slot + 3] - kind[5], 0)) end
        end
        granted = kind[5]
        list.dirty = true
      elseif mode == 2 or kind[5] <= left then
        granted = kind[5]
      elseif left > 0 and left >= kind[6] and kind[6] < kind[5] then
        granted = left
      else
        retry = -1
        for n = kept + 2, 3, -1 do
          used = used - window[n]
          if used + kind[5] <= kind[3] then
            retry = (window[1] - (n - 3) + kept) * window[2] - now
            break
          end
        end
      end
      if mode ~= 1 and granted > 0 then
        for _, window in ipairs(list) do set(window, 3, math.min(window[3] + granted, 4294967295)) end
        list.dirty = true
      end
      local full = 0
      for n = 3, kept + 2 do
        if window[n] > 0 then
          full = (window[1] - (n - 3) + kept) * window[2] - now
          break
        end
      end
      reply[r + 1], reply[r + 2], reply[r + 3], reply[r + 4] = granted, left - granted, math.ceil(retry), math.ceil(full)
      r = r + 4
      if granted == 0 and kind[5] > 0 and not kind.dry then everybody = false end
    else
      local permit, held = ARGV[arg], places_of(name)
      arg = arg + 1
      local left = math.max(kind[3] - held, 0)
      if kind[5] <= left then
        granted = kind[5]
        set(places, name, held + granted)
        if granted > 0 then taken[#taken + 1] = { name, permit, granted, kind[2] } end
      elseif not kind.dry then
        everybody = false
      end
      reply[r + 1], reply[r + 2] = granted, left - granted
      r = r + 2
    end
  end
  if several and not everybody then
    for n = undone, 1, -1 do
      local where, name = undo_in[n], undo_key[n]
      if where == tats and moved[name] then
        moved[name][1] = undo_value[n] or now
      else
        where[name] = undo_value[n]
      end
    end
    for n = #taken, first_taken + 1, -1 do taken[n] = nil end
  end
  key = last + 1
end

local texts = {}
local function life(us)
  local life = math.max(math.ceil(us / 1000), 0) + 1
  local text = texts[life]
  if not text then
    text = string.format('%d', life)
    texts[life] = text
  end
  return text
end
for name, tat in pairs(tats) do
  call('SET', name, pack('>d', tat) .. shapes[name], 'PX', life(tat - now))
end
for name, list in pairs(buckets) do
  local parts, ends = {}, now
  for n, bucket in ipairs(list) do
    parts[n] = pack('>ddd', bucket[1], bucket[2], bucket[3])
    ends = math.max(ends, bucket[1])
  end
  call('SET', name, table.concat(parts), 'PX', life(ends - now))
end
for name, list in pairs(windows) do
  if list.dirty then
    local kept, parts, ends = list.kind[4], {}, now
    for n, window in ipairs(list) do
      parts[n] = pack(list.kind.format, unpack(window, 1, kept + 2))
      for i = 1, kept do
        if window[i + 2] > 0 then
          ends = math.max(ends, (window[1] - i + 1 + kept) * window[2])
          break
        end
      end
    end
    call('SET', name, table.concat(parts), 'PX', life(ends - now))
  end
end
for _, place in ipairs(taken) do
  local name, ends = place[1], now + place[4]
  call('HSET', name, place[2], pack('>dd', ends, place[3]))
  if not firsts[name] or ends < firsts[name] then firsts[name] = ends end
  call('HSET', name, '', pack('>dd', places[name], firsts[name]))
  call('PEXPIRE', name, life(place[4]))
end
return reply
