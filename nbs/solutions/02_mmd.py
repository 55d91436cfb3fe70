# Exercise 1
def two_points(d, w, D):
    return 2 * (1 - math.exp(-w*d/D))           # k(0) + k(0) - 2 k(d): all pairs of a matrix are alike

# Exercise 2
sends_gradient = dict(yy=False, zz=False, yz=True)      # a particle stays at distance 0 from itself wherever it moves

# Exercise 3
def mmd2_loops(y, z, k):
    M, total = len(y), 0.
    for i in range(M):
        for j in range(M):
            total += k((y[i] - y[j]).norm()) + k((z[i] - z[j]).norm()) - 2*k((y[i] - z[j]).norm())
    return total / M**2

# Exercise 4
def distances(a, b):
    squares = (a[:, None] - b[None]).square().sum(-1)
    return squares.clamp_min(1e-20).sqrt()      # the clamp stops the gradient before the root can spoil it

# Exercise 5
y_points, z_points = [-4, -4, 4, 4], [0, 0, 0, 0]       # one mean, two shapes
