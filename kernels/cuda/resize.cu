/*
 * Pillow's 8-bit bicubic resize and the normalisation after it, bit for bit engine/image_resize.c's: the weights are made by the
 * same double arithmetic (IEEE division and no contraction on both sides) and rounded to 22 bits; pixels then need integers only.
 * Horizontal first, over the rows of the picture, then vertical, as Pillow does; what lies on the canvas outside the picture is 127
 * and takes no memory. Some pictures share three launches: one alone is a few microseconds' work for a small part of the device.
 */
#include "kernels/cuda/device.h"

enum { THREADS = 256, PRECISION_BITS = 22, MOST_ROWS = 2048 /* of blocks of one picture, which take more rows in turns */ };

constexpr uint8_t PAD_VALUE = 127;

/* The weights of one axis, in scratch: output o is the sum over k < count[o] of q[o * window + k] * in[start[o] + k]. */
struct axis {
  int32_t *start, *count, *q;
  int64_t in, out, window;
};

/* A picture, its scratch, and the weights of both axes. */
struct task {
  btc_cuda_picture p;
  axis h, v;
  uint8_t *lines; /* [height + 1, side, channels]: rows filtered; the last one of nothing but background */
};

struct tasks {
  task t[BTC_CUDA_PICTURES];
};

/* Largest number of inputs an output can need. */
static int64_t axis_window(int64_t in, int64_t out) {
  if (in == out) return 1;
  double scale = static_cast<double>(in) / static_cast<double>(out);
  int64_t taps = static_cast<int64_t>(ceil(2.0 * (scale > 1.0 ? scale : 1.0))) * 2 + 1;
  return taps < in ? taps : in;
}

BTC_DEVICE double bicubic(double x) {
  const double a = -0.5;
  if (x < 0.0) x = -x;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

/* A thread an output, a row of blocks an axis (the picture's own number is blockIdx.z, here and below). The unrounded weights are
 * computed twice rather than kept: their sum has to be known first. */
static __global__ void __launch_bounds__(THREADS) resize_weights(tasks all) {
  const axis &a = blockIdx.y ? all.t[blockIdx.z].v : all.t[blockIdx.z].h;
  const int64_t o = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  if (o >= a.out) return;
  int32_t *q = a.q + o * a.window;
  if (a.in == a.out) { /* the pass is skipped: one weight of exactly 1 */
    a.start[o] = static_cast<int32_t>(o);
    a.count[o] = 1;
    q[0] = 1 << PRECISION_BITS;
    return;
  }
  const double scale = static_cast<double>(a.in) / static_cast<double>(a.out), filter_scale = scale > 1.0 ? scale : 1.0;
  const double support = 2.0 * filter_scale, center = (static_cast<double>(o) + 0.5) * scale, inverse = 1.0 / filter_scale;
  int64_t lo = static_cast<int64_t>(center - support + 0.5), hi = static_cast<int64_t>(center + support + 0.5);
  if (lo < 0) lo = 0;
  if (hi > a.in) hi = a.in;
  double sum = 0.0;
  for (int64_t k = 0; k < hi - lo; k++) sum += bicubic((static_cast<double>(k + lo) - center + 0.5) * inverse);
  for (int64_t k = 0; k < hi - lo; k++) {
    double w = bicubic((static_cast<double>(k + lo) - center + 0.5) * inverse);
    if (sum != 0.0) w /= sum;
    q[k] = static_cast<int32_t>(w * (1 << PRECISION_BITS) + (w < 0 ? -0.5 : 0.5));
  }
  a.start[o] = static_cast<int32_t>(lo);
  a.count[o] = static_cast<int32_t>(hi - lo);
}

BTC_DEVICE uint8_t clip(int32_t sum) {
  const int32_t v = sum >> PRECISION_BITS;
  return static_cast<uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* A thread a sample of a line. */
static __global__ void __launch_bounds__(THREADS) resize_horizontal(tasks all) {
  const task &t = all.t[blockIdx.z];
  const btc_cuda_picture &p = t.p;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x, samples = t.h.out * p.channels;
  if (i >= samples) return;
  const int64_t o = i / p.channels, channel = i % p.channels, first = t.h.start[o] - p.left;
  const int32_t *q = t.h.q + o * t.h.window, count = t.h.count[o];
  for (int64_t row = blockIdx.y; row <= p.height; row += gridDim.y) {
    const uint8_t *in = p.rgb + row * p.width * p.channels + channel;
    int32_t sum = 1 << (PRECISION_BITS - 1);
    for (int32_t k = 0; k < count; k++) {
      const int64_t x = first + k;
      const bool inside = row < p.height && x >= 0 && x < p.width;
      sum += q[k] * (inside ? in[x * p.channels] : PAD_VALUE);
    }
    t.lines[row * samples + i] = clip(sum);
  }
}

struct shades {
  double rescale;
  float mean[3], std[3];
};

/* pixels[n, 3, side, side]; block: 256 columns of one row, all channels. */
static __global__ void __launch_bounds__(THREADS) resize_vertical(float *pixels, tasks all, shades n) {
  const task &t = all.t[blockIdx.z];
  const btc_cuda_picture &p = t.p;
  const int64_t x = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x, y = blockIdx.y, side = t.v.out;
  if (x >= side) return;
  const int32_t *q = t.v.q + y * t.v.window, count = t.v.count[y];
  const int64_t first = t.v.start[y] - p.top, samples = side * p.channels;
  float *out = pixels + blockIdx.z * 3 * side * side;
  for (int channel = 0; channel < 3; channel++) {
    const uint8_t *in = t.lines + x * p.channels + (p.channels == 3 ? channel : 0);
    int32_t sum = 1 << (PRECISION_BITS - 1);
    for (int32_t k = 0; k < count; k++) {
      const int64_t row = first + k;
      sum += q[k] * in[(row >= 0 && row < p.height ? row : p.height) * samples];
    }
    const float v = static_cast<float>(static_cast<double>(clip(sum)) * n.rescale);
    out[(channel * side + y) * side + x] = (v - n.mean[channel]) / n.std[channel];
  }
}

/* ---- scratch of a picture: both axes' tables, then the lines ---- */

static size_t axis_words(int64_t in, int64_t out) {
  return static_cast<size_t>(out) * static_cast<size_t>(axis_window(in, out) + 2);
}

static axis place_axis(int32_t *words, int64_t in, int64_t out) {
  return {words, words + out, words + 2 * out, in, out, axis_window(in, out)};
}

size_t btc_cuda_resize_scratch(const btc_cuda_picture *p, int64_t side) {
  size_t words = axis_words(p->canvas_width, side) + axis_words(p->canvas_height, side);
  size_t bytes =
      words * sizeof(int32_t) + static_cast<size_t>(p->height + 1) * static_cast<size_t>(side) * static_cast<size_t>(p->channels);
  return (bytes + 15) / 16 * 16;
}

static task place(const btc_cuda_picture &p, int64_t side, char *scratch) {
  auto *words = reinterpret_cast<int32_t *>(scratch);
  const axis h = place_axis(words, p.canvas_width, side);
  const axis v = place_axis(words + axis_words(p.canvas_width, side), p.canvas_height, side);
  return {p, h, v, reinterpret_cast<uint8_t *>(v.q + side * v.window)};
}

int btc_cuda_resize(float *pixels, const btc_cuda_picture *p, int n, int64_t side, double rescale, const float mean[3],
                    const float std[3], void *scratch, btc_cuda_stream s) {
  const shades shade = {rescale, {mean[0], mean[1], mean[2]}, {std[0], std[1], std[2]}};
  const auto columns = static_cast<unsigned>((side + THREADS - 1) / THREADS), deep = static_cast<unsigned>(n);
  auto *place_of = static_cast<char *>(scratch);
  tasks all = {};
  int64_t rows = 0, samples = 0;
  if (n <= 0) return 0;
  for (int i = 0; i < n; i++) {
    all.t[i] = place(p[i], side, place_of);
    place_of += btc_cuda_resize_scratch(&p[i], side);
    if (p[i].height + 1 > rows) rows = p[i].height + 1;
    if (side * p[i].channels > samples) samples = side * p[i].channels;
  }
  if (rows > MOST_ROWS) rows = MOST_ROWS;
  const dim3 lines(static_cast<unsigned>((samples + THREADS - 1) / THREADS), static_cast<unsigned>(rows), deep);
  int e = BTC_LAUNCH(resize_weights, dim3(columns, 2, deep), THREADS, 0, s, all);
  if (e == 0) e = BTC_LAUNCH(resize_horizontal, lines, THREADS, 0, s, all);
  if (e == 0) e = BTC_LAUNCH(resize_vertical, dim3(columns, static_cast<unsigned>(side), deep), THREADS, 0, s, pixels, all, shade);
  return e;
}
