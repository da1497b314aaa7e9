-- Once a second asks every replica for GET /v1/load, and weighs it by what waits there: from 256 for an empty
-- queue to 1. That also shows what other balancers and direct clients sent. A replica that does not answer keeps
-- its weight; whether it gets requests at all is the health check's business.
-- Where the servers have API keys, WAVLLM_API_KEY holds them as they get them, separated by commas; one will do.

local PERIOD_MS = 1000
local TIMEOUT_MS = 900
local KEY = (os.getenv("WAVLLM_API_KEY") or ""):match("[^,%s]+") or ""

local function weight_of(body)
    local waiting = tonumber(body:match('"num_requests_waiting"%s*:%s*(%d+)'))
    return waiting and math.max(1, math.floor(256 / (1 + waiting)))
end

local function ask(address)
    local headers = KEY ~= "" and { authorization = { "Bearer " .. KEY } } or {}
    local reply = core.httpclient():get { url = "http://" .. address .. "/v1/load", headers = headers, timeout = TIMEOUT_MS }
    return reply and reply.status == 200 and weight_of(reply.body)
end

local function weigh_all()
    for name, server in pairs(core.backends["rest"].servers) do
        local address = server:get_addr()
        local weight = address:match("^[%d.]+:%d+$") and ask(address)
        if weight then
            server:set_weight(tostring(weight))
            core.backends["grpc"].servers[name]:set_weight(tostring(weight))
        end
    end
end

core.register_task(function()
    while true do
        weigh_all()
        core.msleep(PERIOD_MS)
    end
end)
