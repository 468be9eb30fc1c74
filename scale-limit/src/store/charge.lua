-- Decides on the charges of several requests: all charges of a request are admitted, or none is
-- charged.
-- KEYS  one for each charge, except that charges with buckets in one key are adjacent and share it; all
--       in one slot in a Cluster
-- ARGV  number of kinds of charges; for each kind ten values:
--         algorithm   1 GCRA               2 window               3 permits
--         x           us per unit          us per slot            lifetime of a permit (us)
--         y           burst (units)        quota                  quota
--         z           maximum debt (us)    slots that count       -
--         cost, least  units requested, and minimum to grant
--         dry         1: denies no request
--         mode        0 charge, 1 refund, 2 debit
--         age         us since the charge, for a refund
--         id          eight bytes of a hash of the policy's name
--       then for each request: its number of charges, and for each charge its kind (0 is the first),
--       with the prefix `s` if its key is that of the previous charge, and, for permits, the permit
-- Reply for each charge, by algorithm:
--         GCRA    granted (units, 0 if denied), TAT minus now after the charge (us); if nothing is
--                 granted also before it (us)
--         window  granted, units left, us until the cost would fit (-1: never), us until the whole
--                 quota is available
--         permits granted, permits left
-- Cost  one TIME, one MGET for a thousand keys, one write for each key charged; for permits also one
--       HGET each, and occasionally one HGETALL. O(charges x slots)
-- Keys  GCRA    string: for each policy, and each shape of it in use, a record of 32 bytes: TAT, a
--               double; the policy's id; us per unit, burst, doubles. If a policy has several
--               shapes, the most recently used come first, and the last value is the time since
--               which only one shape has been used
--       window  string: for each length of slots in use: number of the newest slot, us per slot,
--               doubles; the counters, four bytes each
--       permits hash: permit -> its expiry, its number of permits; '' -> permits held, a lower bound
--               of the first expiry; doubles
-- Times are microseconds since 2025-01-01, as doubles: they hold fractions of a microsecond for
-- centuries. They are stored as their eight bytes: formatting and parsing numbers would cost more than
-- everything else.
local call, pack, unpack_binary, sub, find = redis.call, struct.pack, struct.unpack, string.sub, string.find
local time = call('TIME')
local now = (tonumber(time[1]) - 1735689600) * 1000000 + tonumber(time[2])
local stored = {}
for from = 1, #KEYS, 1000 do
  local part = call('MGET', unpack(KEYS, from, math.min(from + 999, #KEYS)))
  if from == 1 then
    stored = part
  else
    for n = 1, #part do stored[from + n - 1] = part[n] end
  end
end

local kinds, sharing, shape_of, arg = {}, {}, {}, 2
for i = 0, tonumber(ARGV[1]) - 1 do
  local kind = { dry = ARGV[arg + 6] == '1' }
  for n = 1, 9 do kind[n] = tonumber(ARGV[arg + n - 1]) end
  if kind[1] == 1 then
    -- A rounding error of a hundredth of a microsecond must not deny a unit.
    kind.worth, kind.capacity = kind[5] * kind[2], kind[3] * kind[2] + 0.01
    kind.plain = kind[8] == 0 and kind[6] == kind[5] and kind[5] > 0
    kind.id = ARGV[arg + 9]
    kind.shape = kind.id .. pack('>dd', kind[2], kind[3])
    -- TATs of the keys after this call, shared by kinds with one shape.
    local like = shape_of[kind.shape]
    kind.tats, kind.before = like and like.tats or {}, like and like.before or {}
    -- Two shapes of one policy in one call.
    local same = shape_of[kind.id]
    if same and same.shape ~= kind.shape then same.several, kind.several = true, true end
    shape_of[kind.id], shape_of[kind.shape] = kind, kind
  elseif kind[1] == 2 then
    kind.format = '>dd' .. string.rep('I4', kind[4])
  end
  kinds[tostring(i)], sharing['s' .. i] = kind, kind
  arg = arg + 10
end

-- State of the keys after this call, so that a key that occurs twice is charged twice. If each
-- policy of a key has one shape, `touched` holds the kind charged last, and each kind holds its TAT
-- and the kind `before` it. For other keys `records` holds all records, { TAT, us per unit, burst,
-- id }, and `moved` the records that were in a kind's TATs before. `missing` counts the kinds
-- without a record in a key.
local touched, missing, records, moved = {}, {}, {}, {}
local has_records = false
local windows, places, firsts, taken = {}, {}, {}, {}
-- Changes to be undone if the request is denied in the end: table, key, and previous value.
local undone, undo_in, undo_key, undo_value = 0, {}, {}, {}
-- Likewise the previous order of the records or windows. A shape added for the denied request is
-- kept: later the other shapes might contain less information.
local orders = {}
local several

local function remember(list, of, name)
  if several and not orders[name] then
    local order = {}
    for n, value in pairs(list) do order[n] = value end
    orders[name] = { of, order }
  end
end

local function set(where, key, value)
  if several then
    undone = undone + 1
    undo_in[undone], undo_key[undone], undo_value[undone] = where, key, where[key]
  end
  where[key] = value
end

-- Returns the position of the record with this id, or id and shape. Values with many records are
-- indexed once.
local indexed = {}
local function position(bytes, part)
  if #bytes > 640 then
    local index = indexed[bytes]
    if not index then
      index = {}
      for at = 9, #bytes - 23, 32 do index[sub(bytes, at, at + 23)], index[sub(bytes, at, at + 7)] = at, at end
      indexed[bytes] = index
    end
    return index[part]
  end
  local at = find(bytes, part, 9, true)
  while at and (at - 9) % 32 ~= 0 do at = find(bytes, part, at + 1, true) end
  return at
end

-- Returns the record of a kind, and the records of its policy's other shapes, for a key with
-- several shapes of a policy.
local function records_of(name, bytes, kind)
  local list = records[name]
  if not list then
    bytes = bytes or ''
    list = { since = #bytes % 32 == 8 and unpack_binary('>d', bytes, #bytes - 7) or now }
    for at = 1, #bytes - 31, 32 do
      local tat, id, interval, burst = unpack_binary('>dc8dd', bytes, at)
      list[#list + 1] = { math.max(tat, now), interval, burst, id }
    end
    -- Charges of this call from before several shapes were found.
    local of = touched[name]
    while of do
      local own
      for _, record in ipairs(list) do
        if record[4] == of.id and record[2] == of[2] and record[3] == of[3] then own = record end
      end
      if not own then
        own = { now, of[2], of[3], of.id }
        table.insert(list, 1, own)
      end
      own.before = own[1]
      own[1] = of.tats[name] or own[1]
      moved[of.tats] = moved[of.tats] or {}
      moved[of.tats][name] = own
      of = of.before[name]
    end
    touched[name] = nil
    records[name], has_records = list, true
  end
  local own, others, last = nil, {}, nil
  for n = #list, 1, -1 do
    local record = list[n]
    if record[4] == kind.id then
      table.remove(list, n)
      last = record
      if record[2] == kind[2] and record[3] == kind[3] then own = record else table.insert(others, 1, record) end
    end
  end
  if not own then
    -- Usage is carried over from the shape with the highest usage, at most to an empty bucket.
    local used = 0
    for _, other in ipairs(others) do used = math.max(used, (other[1] - now) / other[2]) end
    own = { now + math.min(used, kind[3]) * kind[2], kind[2], kind[3], kind.id }
    others[4] = nil
  end
  if last ~= own then list.since = now end
  for n = #others, 1, -1 do table.insert(list, 1, others[n]) end
  table.insert(list, 1, own)
  remember(list, records, name)
  return own, others
end

local function roll(window, kept)
  -- If time goes backwards, the newest slot is kept.
  local newest = math.max(math.floor(now / window[2]), window[1])
  local by = math.min(newest - window[1], kept)
  if by > 0 then
    for i = kept, 1, -1 do window[i + 2] = i > by and window[i - by + 2] or 0 end
  end
  window[1] = newest
end

-- Returns the counters of a key, { newest slot, us per slot, counters }, up to date; the counters
-- of this kind come first.
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
      list.dirty = list.dirty or n > 1
      break
    end
  end
  if not own then
    -- Starts from the counters of the other slot length with the highest sum: each counter is
    -- assigned to the latest time that it may represent.
    local most = -1
    for n = 0, #list do
      local counts, sum, other = { math.floor(now / kind[2]), kind[2] }, 0, list[n]
      for i = 1, kept do counts[i + 2] = 0 end
      for i = 0, other and kept - 1 or -1 do
        local at = math.min(now, (other[1] - i + 1) * other[2])
        local slot = math.max(counts[1] - math.floor(at / kind[2]), 0)
        if slot < kept then counts[slot + 3], sum = counts[slot + 3] + other[i + 3], sum + other[i + 3] end
      end
      if sum > most then own, most = counts, sum end
    end
    list.dirty = list.dirty or #list > 0
    list[4] = nil
  end
  table.insert(list, 1, own)
  list.kind = kind
  remember(list, windows, name)
  return list
end

-- Returns the number of permits held for a key. Expired permits are searched only when one must
-- have expired.
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
      -- So that the next call need not search again.
      if first then call('HSET', name, '', pack('>dd', held, first)) else call('DEL', name) end
    end
    places[name], firsts[name] = held, first
  end
  return held
end

-- True if all charges are of one kind, and of keys without buckets of other policies: the simplest
-- and most frequent call.
local alone = kinds['0'] and kinds['0'].plain and ARGV[1] == '1'
for n = 1, alone and #KEYS or 0 do
  local bytes = stored[n]
  if bytes and (#bytes ~= 32 or sub(bytes, 9) ~= kinds['0'].shape) then alone = false end
end

local reply, r, key, offset = {}, 0, 0, 9
while arg <= #ARGV do
  local charges = tonumber(ARGV[arg])
  arg = arg + 1
  local everybody, first_taken = true, #taken
  several = charges > 1
  undone = 0
  if next(orders) then orders = {} end
  for _ = 1, charges do
    local word, granted = ARGV[arg], 0
    local kind = kinds[word]
    if kind then
      key, offset = key + 1, 9
    else
      kind, offset = sharing[word], offset + 32
    end
    local name = KEYS[key]
    arg = arg + 1
    local algorithm, mode = kind[1], kind[8]
    if algorithm == 1 then
      local tat, own, others
      if not (has_records and records[name]) and not kind.several then
        tat = kind.tats[name]
        if not tat then
          local bytes = stored[key]
          if not bytes then
            tat = now
          elseif alone then
            tat = unpack_binary('>d', bytes)
            if tat < now then tat = now end
          elseif #bytes % 32 == 0 then
            -- Records are usually in the order in which they were written.
            local shape
            if #bytes >= offset + 23 then tat, shape = unpack_binary('>dc24', bytes, offset - 8) end
            if shape ~= kind.shape then
              tat = nil
              local at = position(bytes, kind.shape)
              if at then
                tat = unpack_binary('>d', bytes, at - 8)
              elseif not position(bytes, kind.id) then
                tat = now
                missing[name] = (missing[name] or 0) + 1
              end
            end
            if tat and tat < now then tat = now end
          end
        end
      end
      if not tat then
        own, others = records_of(name, stored[key], kind)
        tat = own[1]
      end
      local after = tat + kind.worth
      if kind.plain then
        -- The common case: a charge of a bucket.
        if after - now <= kind.capacity then granted = kind[5] end
      elseif mode == 1 then
        after = math.max(tat - math.max(kind.worth - kind[9], 0), now)
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
      -- Redis truncates fractions: round down before the charge, up after it.
      r = r + 2
      reply[r - 1], reply[r] = granted, after - now + 0.999
      if granted == 0 then
        r = r + 1
        reply[r] = tat - now
        if kind[5] > 0 and not kind.dry then everybody = false end
      elseif own then
        set(own, 1, after)
        -- Other shapes are charged too, at most to an empty bucket.
        for _, record in ipairs(others) do
          local units = granted * record[2]
          if mode == 1 then
            set(record, 1, math.max(record[1] - math.max(units - kind[9], 0), now))
          else
            set(record, 1, math.min(record[1] + units, math.max(now + record[2] * record[3], record[1])))
          end
        end
      else
        local tats = kind.tats
        if not alone and kind.before[name] == nil then
          kind.before[name], touched[name] = touched[name] or false, kind
        end
        if several then
          undone = undone + 1
          undo_in[undone], undo_key[undone], undo_value[undone] = tats, name, tats[name]
        end
        tats[name] = after
      end
    elseif algorithm == 2 then
      local list, kept = windows_of(name, stored[key], kind), kind[4]
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
      local record = moved[where] and moved[where][name]
      if record then
        record[1] = undo_value[n] or record.before
      else
        where[name] = undo_value[n]
      end
    end
    for name, order in pairs(orders) do order[1][name] = order[2] end
    for n = #taken, first_taken + 1, -1 do taken[n] = nil end
  end
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
if alone then
  local kind = kinds['0']
  for name, tat in pairs(kind.tats) do call('PSETEX', name, life(tat - now), pack('>dc24', tat, kind.shape)) end
end
local chain, parts = {}, {}
for n = 1, alone and 0 or #KEYS do
  local name = KEYS[n]
  local kind = touched[name]
  if kind then
    touched[name] = nil
    local bytes, ends, length, count = stored[n], now, 0, 0
    repeat
      length = length + 1
      chain[length] = kind
      kind = kind.before[name]
    until not kind
    -- In the order of the charges.
    for at = length, 1, -1 do
      local kind = chain[at]
      local tat = kind.tats[name]
      if tat then
        count = count + 1
        parts[count] = pack('>dc24', tat, kind.shape)
        if tat > ends then ends = tat end
      end
    end
    local value = count == 1 and parts[1] or table.concat(parts, '', 1, count)
    if bytes and #bytes ~= 32 * (count - (missing[name] or 0)) then
      -- Records that were not charged are kept until their buckets are full.
      for at = 1, #bytes, 32 do
        local tat = unpack_binary('>d', bytes, at)
        if tat > now and not position(value, sub(bytes, at + 8, at + 31)) then
          count = count + 1
          parts[count] = sub(bytes, at, at + 31)
          if tat > ends then ends = tat end
        end
      end
      value = table.concat(parts, '', 1, count)
    end
    if count > 0 then call('PSETEX', name, life(ends - now), value) end
  end
end
for name, list in pairs(records) do
  local parts, ends, known = {}, now, {}
  for _, record in ipairs(list) do
    local tat, interval, burst, id = record[1], record[2], record[3], record[4]
    -- A shape is removed when it has not been used for so long that its bucket would be full.
    if not known[id] or now - list.since <= 2 * interval * burst then
      parts[#parts + 1] = pack('>dc8dd', tat, id, interval, burst)
      ends = math.max(ends, tat)
      if known[id] then known.several = true end
      known[id] = true
    end
  end
  if known.several then parts[#parts + 1] = pack('>d', list.since) end
  call('PSETEX', name, life(ends - now), table.concat(parts))
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
    call('PSETEX', name, life(ends - now), table.concat(parts))
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
