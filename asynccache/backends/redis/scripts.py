"""What the server does in one step: the scripts, each with its keys in one slot.

What is stored under a key::

    [lease] [entry]        either may be missing, not both

    lease, 32 bytes:   0xAD, a token (16 characters), until when (15 digits: milliseconds since 1970, server's clock)
    entry:             as the codec writes it

A lease lies in front of the entry that it is to replace, so that every write or deletion of the key by anybody voids
it, without a further command. Plain values, which other programs read, have no leases. Times are the server's, which
each connection compares with the cache's clock when it is made.
"""

from dataclasses import dataclass, field
from hashlib import sha1
from typing import Final

from asynccache.backends.redis.reading import HEAD
from asynccache.backends.redis.wire import pack

__all__ = [
    "ACQUIRE", "ADD", "COMMIT", "DELETE", "DROP", "LEASE_BYTES", "LEASE_MAGIC", "LESSONS", "MOVE", "NAMES", "PUT_IF",
    "RELEASE", "RENEW", "SWAP", "TOUCH", "Script", "lease_record",
]  # fmt: skip

LEASE_BYTES: Final = 32
LEASE_MAGIC: Final = 0xAD


def lease_record(token: str, until: float) -> bytes:
    """A lease as it is stored; ``until`` in seconds since 1970."""
    return b"\xad" + token.encode("ascii") + b"%015d" % int(until * 1_000)


_COMMON: Final = """
local function first(key, last)
  local v = redis.pcall('GETRANGE', key, 0, last)
  if type(v) == 'table' then redis.call('DEL', key); return '' end
  return v
end
local function leased(v) return string.byte(v, 1) == 173 and #v >= 32 end
local function number(v, from, to)
  local n = 0
  for i = from, to do n = n * 256 + string.byte(v, i) end
  return n
end
local function fresh(v, now)
  if leased(v) then v = string.sub(v, 33) end
  if #v < 24 or string.byte(v, 1) ~= 172 then return false end
  local span = number(v, 11, 15)
  return span == 1099511627775 or now < number(v, 5, 10) / 65536 + span / 1024
end
local function held(v, token, now)
  return leased(v) and string.sub(v, 2, 17) == token and (tonumber(string.sub(v, 18, 32)) or 0) > now * 1000
end
local function release(key)
  if redis.call('STRLEN', key) == 32 then redis.call('UNLINK', key)
  else redis.call('SET', key, redis.call('GETRANGE', key, 32, -1), 'KEEPTTL') end
end
local function outlive(key, px)
  local left = redis.call('PTTL', key)
  if left >= 0 and left < px then redis.call('PEXPIRE', key, px) end
end
"""


@dataclass(frozen=True, slots=True)
class Script:
    """A script, and what calls it.

    Attributes:
        name: What spans call it.
        source: What the server runs.
        sha: What it knows it by.
    """

    name: str
    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        """Work out what servers call it."""
        object.__setattr__(self, "sha", sha1(self.source.encode(), usedforsecurity=False).hexdigest())


PUT_IF: Final = Script(
    "put_if",
    _COMMON
    + f"local v = first(KEYS[1], {HEAD - 1})"
    + """
if fresh(v, tonumber(ARGV[2])) ~= (ARGV[1] == 'present') then return v end
if ARGV[3] == '' then redis.call('SET', KEYS[1], ARGV[4])
else redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[3]) end
return 1
""",
)
"""Store if absent or present; else return the first `HEAD` bytes of what is there. Arguments: the condition, now,
milliseconds to live or nothing, the bytes."""

DELETE: Final = Script(
    "delete",
    _COMMON
    + """
local count, now = 0, tonumber(ARGV[1])
for _, key in ipairs(KEYS) do
  if fresh(first(key, 55), now) then count = count + 1 end
  redis.call('UNLINK', key)
end
return count
""",
)
"""Remove the keys; how many were fresh. Argument: now."""

TOUCH: Final = Script(
    "touch",
    _COMMON
    + """
local function packed(span)
  if span == nil or span > 1099511627774 then span = span and 1099511627774 or 1099511627775 end
  if span < 0 then span = 0 end
  local out = ''
  for _ = 1, 5 do out = string.char(span % 256) .. out; span = math.floor(span / 256) end
  return out
end
local v = first(KEYS[1], 55)
local now, fresh_until, grace = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if not fresh(v, now) then return 0 end
local at = leased(v) and 32 or 0
local span = fresh_until and math.floor((fresh_until - number(v, at + 5, at + 10) / 65536) * 1024)
local rest = fresh_until and grace and math.floor(grace * 1024)
redis.call('SETRANGE', KEYS[1], at + 10, packed(span or nil) .. packed(rest or nil))
if ARGV[4] == '' then redis.call('PERSIST', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
return 1
""",
)
"""Give a fresh entry new times. Arguments: now, until when it is fresh, its grace in seconds, milliseconds to live;
each of the last three is nothing where it has no end."""

ADD: Final = Script(
    "add",
    _COMMON
    + """
local key, now, delta, px, initial, crc = KEYS[1], tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local v = first(key, -1)
if not fresh(v, now) then
  if px == '' then redis.call('SET', key, initial) else redis.call('SET', key, initial, 'PX', px) end
  return delta
end
if leased(v) then
  v = string.sub(v, 33)
  redis.call('SET', key, v, 'KEEPTTL')
end
if not crc or string.sub(v, 1, 4) ~= string.sub(initial, 1, 4) then return {v} end
local body = string.sub(v, 25)
if not string.find(body, '^-?%d+$') or #body > 20 then return {v} end
redis.call('SET', key, body, 'KEEPTTL')
local sum = redis.pcall('INCRBY', key, delta)
if type(sum) == 'table' then
  redis.call('SET', key, v, 'KEEPTTL')
  return {v}
end
sum = redis.call('GET', key)
local c = bit.bnot(crc)
for i = 1, #sum do
  c = bit.bxor(c, string.byte(sum, i))
  for _ = 1, 8 do
    c = bit.bxor(bit.rshift(c, 1), bit.band(0xEDB88320, -bit.band(c, 1)))
  end
end
c = bit.bnot(c)
local check = ''
for shift = 24, 0, -8 do check = check .. string.char(bit.band(bit.rshift(c, shift), 255)) end
redis.call('SET', key, string.sub(v, 1, 20) .. check .. sum, 'KEEPTTL')
return sum
""",
)
"""Add to a counter and return the sum as text; or, in a list, the entry that only a codec can add to.

Arguments: now, what to add, milliseconds to live or nothing, the entry of a new counter, the CRC-32 of a counter's
binding or nothing where counters are sealed. The addition is the server's own, exact in 64 bits; Lua's numbers are not.
"""

SWAP: Final = Script(
    "swap",
    """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] == 'keep' then redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
elseif ARGV[3] == '' then redis.call('SET', KEYS[1], ARGV[2])
else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
""",
)
"""Replace bytes by others if they are still those. Arguments: the old, the new, milliseconds to live, nothing, or
``keep`` for as long as the old had."""

DROP: Final = Script(
    "drop",
    """
local v = redis.pcall('GET', KEYS[1])
if type(v) ~= 'table' and v ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
""",
)
"""Remove what cannot be read, if it is still that: another type than text, or these bytes. Argument: the bytes."""

ACQUIRE: Final = Script(
    "acquire",
    _COMMON
    + """
local key, now, record, px = KEYS[1], tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local time = redis.call('TIME')  -- first: who may not ask for it must not leave a lease behind
local v = first(key, 31)
if leased(v) then
  local left = (tonumber(string.sub(v, 18, 32)) or 0) / 1000 - now
  if left > 0 and left <= tonumber(ARGV[4]) then return 0 end
  redis.call('SETRANGE', key, 0, record)
  if redis.call('STRLEN', key) == 32 then redis.call('PEXPIRE', key, px) else outlive(key, px) end
elseif v == '' then
  redis.call('SET', key, record, 'PX', px)
else
  redis.call('SET', key, record .. redis.call('GET', key), 'KEEPTTL')
  outlive(key, px)
end
return time[1] .. string.format('%06d', time[2])
""",
)
"""Grant the lease, if nobody has it, and return its fencing number: the server's time in microseconds, which leaves
nothing behind for each lock. Arguments: now, the lease, milliseconds to live, and for how many seconds another's is
believed at most: a clock may have been set back."""

RENEW: Final = Script(
    "renew",
    _COMMON
    + """
local key, now, token, record, px = KEYS[1], tonumber(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])
if not held(first(key, 31), token, now) then return 0 end
redis.call('SETRANGE', key, 0, record)
outlive(key, px)
return 1
""",
)
"""Hold a lease longer, if it is still held. Arguments: now, the token, the lease, milliseconds to live."""

COMMIT: Final = Script(
    "commit",
    _COMMON
    + """
if not held(first(KEYS[1], 31), ARGV[2], tonumber(ARGV[1])) then return 0 end
if ARGV[3] == '' then redis.call('SET', KEYS[1], ARGV[4])
else redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[3]) end
return 1
""",
)
"""Store and give the lease back, if it is still held. Arguments: now, the token, milliseconds to live or nothing, the
bytes."""

MOVE: Final = Script(
    "move",
    _COMMON
    + """
if not held(first(KEYS[1], 31), ARGV[2], tonumber(ARGV[1])) then
  redis.call('UNLINK', KEYS[2])
  return 0
end
local moved = redis.pcall('RENAME', KEYS[2], KEYS[1])
if moved.err then
  if not string.find(moved.err, 'no such key', 1, true) then return moved end
  release(KEYS[1])
  return 0
end
if ARGV[3] == '' then redis.call('PERSIST', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1
""",
)
"""As `COMMIT`, with what the second key holds instead of the bytes; when nothing is there, the lease is given back."""

RELEASE: Final = Script(
    "release",
    _COMMON
    + """
local v = first(KEYS[1], 31)
if not leased(v) or string.sub(v, 2, 17) ~= ARGV[1] then return 0 end
release(KEYS[1])
return 1
""",
)
"""Give a lease back, if it is the token's. Argument: the token."""

_ALL: Final = (PUT_IF, DELETE, TOUCH, ADD, SWAP, DROP, ACQUIRE, RENEW, COMMIT, MOVE, RELEASE)

NAMES: Final = {script.sha: script.name for script in _ALL}
"""The scripts' names, by what servers know them by."""

LESSONS: Final = tuple(pack(("SCRIPT", "LOAD", script.source)) for script in _ALL)
"""The commands by which a server comes to know all scripts."""
