// The mask at another threshold, computed where it is looked at.

// values: the map in the order of the file; dims: its three sides. Marked are the 26-connected
// pieces of map > threshold whose peak is above `peak` (-Infinity keeps them all).
export function recut(values, [nx, ny, nz], threshold, peak = -Infinity) {
  const marked = new Uint8Array(values.length);
  const waiting = [];
  const SEEN = 2;
  let voxels = 0;
  let pieces = 0;

  for (let seed = 0; seed < values.length; seed++) {
    if (marked[seed] || !(values[seed] > threshold)) continue;
    const piece = [seed];
    let highest = -Infinity;
    marked[seed] = SEEN;
    waiting.push(seed);
    while (waiting.length) {
      const at = waiting.pop();
      highest = Math.max(highest, values[at]);
      const x = at % nx;
      const y = Math.floor(at / nx) % ny;
      const z = Math.floor(at / (nx * ny));
      for (let k = Math.max(z - 1, 0); k <= Math.min(z + 1, nz - 1); k++) {
        for (let j = Math.max(y - 1, 0); j <= Math.min(y + 1, ny - 1); j++) {
          for (let i = Math.max(x - 1, 0); i <= Math.min(x + 1, nx - 1); i++) {
            const next = i + nx * (j + ny * k);
            if (marked[next] || !(values[next] > threshold)) continue;
            marked[next] = SEEN;
            waiting.push(next);
            piece.push(next);
          }
        }
      }
    }
    if (!(highest > peak)) continue;
    for (const at of piece) marked[at] = 1;
    voxels += piece.length;
    pieces += 1;
  }

  for (let at = 0; at < marked.length; at++) if (marked[at] === SEEN) marked[at] = 0;
  return { marked, voxels, pieces };
}

// The border of what is marked within its axial slices; a and b are the two axes of such a slice.
export function outline(marked, dims, a, b) {
  const steps = [1, dims[0], dims[0] * dims[1]];
  const border = new Uint8Array(marked.length);
  for (let at = 0; at < marked.length; at++) {
    if (!marked[at]) continue;
    for (const axis of [a, b]) {
      const place = Math.floor(at / steps[axis]) % dims[axis];
      const isFirst = place === 0 || !marked[at - steps[axis]];
      const isLast = place === dims[axis] - 1 || !marked[at + steps[axis]];
      if (isFirst || isLast) border[at] = 1;
    }
  }
  return border;
}
