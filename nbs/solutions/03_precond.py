# Exercise 1
def simple_edm(flow, s, t, sigma_d=.5):
    alpha_s, sigma_s, alpha_t, sigma_t = flow.alpha(s), flow.sigma(s), flow.alpha(t), flow.sigma(t)
    v_t = alpha_t**2 + sigma_t**2
    g_skip, g_out = alpha_t / v_t, -sigma_d * sigma_t / v_t.sqrt()     # the guess
    move = alpha_s - sigma_s / sigma_t * alpha_t                       # DDIM: the factor on the guess
    c_skip, c_out = move * g_skip + sigma_s / sigma_t, move * g_out
    return c_skip, c_out

# Exercise 2
def kept(flow, times):         # times: float64 tensor, descending
    t, s = times[:-1], times[1:]
    return (flow.dot(s, t)**2 / (flow.dot(s, s) * flow.dot(t, t))).prod()     # the losses of the jumps multiply

# Exercise 3
def kernel_weight(model, s, t):
    return 1 / model.param.c_out(model.flow, s, t, model.sigma_d).abs()

# Exercise 4
def guided(model, x_t, t, s, label, w):
    null = model(x_t, t, s)                                            # no label is null
    return null + w * (model(x_t, t, s, label) - null)

# Exercise 5
answer = "identity"            # f_{0,t} = G, whatever t is
