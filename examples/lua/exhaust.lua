-- Asks for more than any limit, in the three ways a script can: many small things, one that grows, one that is huge.
local ways = {
    function() local t = {} while true do t[#t + 1] = {#t} end end,
    function() local s = "x" while true do s = s .. s end end,
    function() return ("x"):rep(1 << 30) end,
}
for i, way in ipairs(ways) do
    local succeeded, message = pcall(way)
    assert(not succeeded)
    print(i .. ": " .. tostring(message))
    collectgarbage()
end
print("and on: " .. 6 * 7)
ways[1]() -- nobody catches this one
