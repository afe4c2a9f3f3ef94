// Vectors of the width that this translation unit is compiled for (GCC / Clang vector extensions), and exp on them.
// Included by kernels.cpp alone, inside its namespace of the instruction set: no symbol is shared between sets.

#if defined(__AVX512F__)
constexpr int kBytes = 64;
constexpr int kTileRows = 6; // 6 x 4 accumulators + 6 + 1 operands of 32 registers
#elif defined(__AVX2__)
constexpr int kBytes = 32;
constexpr int kTileRows = 3; // 3 x 4 accumulators + 3 + 1 operands of 16 registers
#else
constexpr int kBytes = 16;
constexpr int kTileRows = 3;
#endif

template <typename T> struct Vectors;
template <> struct Vectors<float> {
  typedef float Value __attribute__((vector_size(kBytes)));
  typedef int32_t Bits __attribute__((vector_size(kBytes)));
  static constexpr int kMantissa = 23;
  static constexpr float kRound = 12582912.0f; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  static constexpr float kLowest = -87.0f;     // exp of less would not be a normal number: flushed to 0
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr int kDegree = 7; // |r| <= ln 2 / 2: r^8 / 8! < 6e-9
};
template <> struct Vectors<double> {
  typedef double Value __attribute__((vector_size(kBytes)));
  typedef int64_t Bits __attribute__((vector_size(kBytes)));
  static constexpr int kMantissa = 52;
  static constexpr double kRound = 6755399441055744.0; // 1.5 * 2^52
  static constexpr double kLowest = -708.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  static constexpr int kDegree = 13; // r^14 / 14! < 5e-18
};

template <typename T> using Vec = typename Vectors<T>::Value;
template <typename T> using Bits = typename Vectors<T>::Bits;
template <typename T> constexpr int kLanes = kBytes / int{sizeof(T)};

template <typename T> inline Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <typename T> inline void store(T* to, Vec<T> v) { __builtin_memcpy(to, &v, sizeof v); }

template <typename T> inline Vec<T> splat(T x) { return Vec<T>{} + x; }

template <typename T> inline Vec<T> max(Vec<T> a, Vec<T> b) { return a > b ? a : b; }

// Sum of the lanes, halves first: the same tree for every vector.
template <typename T> inline T lane_sum(Vec<T> v) {
  typedef T Half __attribute__((vector_size(kBytes / 2)));
  Half low, high;
  __builtin_memcpy(&low, &v, sizeof low);
  __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
  low += high;
  T lanes[kLanes<T> / 2];
  __builtin_memcpy(lanes, &low, sizeof low);
  for (int half = kLanes<T> / 4; half > 0; half /= 2)
    for (int i = 0; i < half; ++i)
      lanes[i] += lanes[i + half];
  return lanes[0];
}

template <typename T> inline T lane_max(Vec<T> v) {
  T best = v[0];
  for (int i = 1; i < kLanes<T>; ++i)
    best = v[i] > best ? v[i] : best;
  return best;
}

// e^x for x up to about 1, within 2 units in the last place; 0 below kLowest. 2^n e^r with x = n ln 2 + r, e^r by its
// Taylor polynomial.
template <typename T> inline Vec<T> exp(Vec<T> x) {
  using V = Vectors<T>;
  const Vec<T> clamped = max<T>(x, splat<T>(V::kLowest));
  const Vec<T> shifted = clamped * T(1.4426950408889634) + V::kRound;
  const Vec<T> n = shifted - V::kRound;
  const Vec<T> r = (clamped - n * V::kLn2High) - n * V::kLn2Low;
  T coefficient[V::kDegree + 1] = {1}; // 1 / k!
  for (int k = 1; k <= V::kDegree; ++k)
    coefficient[k] = coefficient[k - 1] / T(k);
  Vec<T> p = splat<T>(coefficient[V::kDegree]);
  for (int k = V::kDegree - 1; k >= 0; --k)
    p = p * r + coefficient[k];
  const Bits<T> scaled = (Bits<T>)p + ((Bits<T>)shifted << V::kMantissa); // kRound's own bits are shifted out
  return x < V::kLowest ? Vec<T>{} : (Vec<T>)scaled;
}
