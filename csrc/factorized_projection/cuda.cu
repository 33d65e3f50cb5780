#include <algorithm>

#include "factorized_projection/cuda_chain.cuh"
#include "factorized_projection/cuda_launch.cuh"
#include "factorized_projection/cuda_reduce.cuh"
#include "factorized_projection/cuda_tiled.cuh"
#include "factorized_projection/factorized_projection.h"

// The projection on a CUDA device, in one of two ways. B samples, K terms, S × S maps; D the gradient of P(A).
//
// Up to S = 128: chains of two products (cuda_chain.cuh), in at most five launches: Σ n_b² where there is a mask; P(A),
// its difference to the teacher and the squared error; dA and parts of dL and dR together; the sums of these parts; the
// loss. With all gradients, in operations and bytes:
//     products     4 B K S³ for P(A) and 4 B K S³ for each gradient, together 16 B K S³. Reusing L_k A and D R_k would
//                  take 12 B K S³, and room for K·B·S·S numbers of each.
//     memory       A, T, L and R read, dA, dL and dR written: 12 B S² + 16 K S². D written and read twice, A read twice
//                  more, from the L2 cache where they fit: 20 B S². Parts of dL and dR: at most B / 2 maps for each term,
//                  written and read.
//     L2 to SM     4 (64 S + S²), where y is not resident 4 (64 S + 2 S²), for each chain of 64 rows: 256 S² operations.
//     launches     B ⌈S / 64⌉ blocks for P(A), and as many for dA; K · sets · ⌈S / 64⌉ for dL, and as many for dR.
//
// For larger S: single products (cuda_tiled.cuh), a few samples at a time, as many as fill the device:
//     U_k = L_k A      P(A) = Σ_k U_k R_kᵀ, and from it D      G_k = D R_k
//     dA = Σ_k L_kᵀ G_k      dL_k = Σ_b G_k Aᵀ      dR_k = Σ_b Dᵀ U_k
// 12 B K S³ operations; U, G and the parts of dL and dR of that group of samples are kept, which at S = 1024 is one
// sample.
//
// The order of all sums is fixed and no number is added to by two blocks: the same input gives the same bits.
namespace comet {
namespace {

// Two for each multiprocessor of an H200, and about one. Fixed numbers, so that every device gives the same results.
constexpr int64_t BLOCKS_IN_FLIGHT = 2 * 132;
constexpr int64_t BLOCKS_FOR_A_FACTOR = 128;
constexpr int64_t MOST_SETS = 4;

bool in_chains(int64_t size) { return size <= CHAIN_LARGEST_SIZE; }

// How the workspace is laid out, in numbers of 4 bytes. Samples are taken in groups; those of a group are added up in
// sets.
struct Plan {
  int64_t square, blocks, group, samples_per_set, sets;
  int64_t lengths, squares, d, u, g, left_parts, right_parts, total;

  Plan(int64_t terms, int64_t batch, int64_t size, WantedGradients wanted) {
    const int64_t few = std::max<int64_t>(1, batch / 4);
    const bool chains = in_chains(size);
    square = size * size;
    blocks = chains ? ceil_div(size, ROWS) : blocks_of_products(size);
    group = chains ? std::max<int64_t>(1, batch) : std::min(ceil_div(BLOCKS_IN_FLIGHT, terms * blocks), few);
    const int64_t most = chains ? std::max<int64_t>(1, BLOCKS_FOR_A_FACTOR / (terms * blocks)) : MOST_SETS;
    samples_per_set = ceil_div(group, std::min(most, std::max<int64_t>(1, group / (chains ? 4 : 2))));
    sets = ceil_div(group, samples_per_set);
    int64_t used = 0;
    const auto take = [&used](bool needed, int64_t count) {
      const int64_t offset = used;
      used += needed ? ceil_div(count, 4) * 4 : 0;
      return offset;
    };
    const bool factors = wanted.left || wanted.right;
    lengths = take(true, 2 * batch);
    squares = take(true, batch * blocks);
    d = take(!chains || wanted.map || factors, group * square);
    u = take(!chains, group * terms * square);
    g = take(!chains && (wanted.map || wanted.left), group * terms * square);
    left_parts = take(wanted.left, sets * terms * square);
    right_parts = take(wanted.right, sets * terms * square);
    total = used;
  }
};

class Run {
 public:
  Run(const Projection& projection, const float* map, const ProjectionGradients& gradients, CudaCall call)
      : p(projection),
        map(map),
        gradients(gradients),
        plan(p.terms, p.batch, p.size,
             {gradients.map != nullptr, gradients.left != nullptr, gradients.right != nullptr}),
        stream(call.stream),
        precision(call.precision),
        workspace(static_cast<float*>(call.workspace)),
        corner(p.max_size * p.max_size) {}

  void project(float* output) {
    for_groups([&](int64_t first, int64_t samples) {
      make_projection(first, samples, {output + first * plan.square, plan.square, 0, p.size}, {});
    });
  }

  void differentiate(const float* output_gradient) {
    for_groups([&](int64_t first, int64_t samples) {
      if (!in_chains(p.size) && gradients.right) make_u(first, samples);
      make_gradients(first, samples, output_gradient + first * plan.square);
    });
  }

  void compare(const float* teacher, const uint8_t* mask, float* loss) {
    double* lengths = reinterpret_cast<double*>(workspace + plan.lengths);
    if (mask) launch_square_lengths(mask, p.batch, p.size, lengths, stream);
    const Positions positions = {mask ? lengths : nullptr, p.batch,
                                 static_cast<double>(p.batch) * static_cast<double>(plan.square)};
    float* squares = workspace + plan.squares;
    float* d = workspace + plan.d;
    for_groups([&](int64_t first, int64_t samples) {
      make_projection(first, samples, {gradients.any() ? d : nullptr, plan.square, 0, p.size},
                      {teacher + first * plan.square, mask ? mask + first * p.size : nullptr,
                       squares + first * plan.blocks, positions});
      if (gradients.any()) make_gradients(first, samples, d);
    });
    launch_mean(squares, p.batch * plan.blocks, positions, loss, stream);
  }

 private:
  // At least once, so that gradients of no sample at all become 0.
  template <class Work>
  void for_groups(const Work& work) {
    int64_t first = 0;
    do {
      work(first, std::min(plan.group, p.batch - first));
      first += plan.group;
    } while (first < p.batch);
  }

  static Factor factor(const float* data, int64_t outer, int64_t inner, int64_t step, int64_t pitch, bool along_depth) {
    const uint64_t all = reinterpret_cast<uintptr_t>(data) / 4 | static_cast<uint64_t>(outer | inner | step | pitch);
    return {data, outer, inner, step, static_cast<int>(pitch), along_depth, all % 4 == 0};
  }
  // One for each sample of a map; one for each term of a factor.
  Factor map_along_tile(const float* maps) const { return factor(maps, plan.square, 0, 0, p.size, false); }
  Factor terms_along_depth(const float* matrices) const { return factor(matrices, 0, 0, corner, p.max_size, true); }
  Factor terms_along_tile(const float* matrices) const { return factor(matrices, 0, 0, corner, p.max_size, false); }
  Factor own_term(const float* matrices, bool along_depth) const {
    return factor(matrices, 0, corner, 0, p.max_size, along_depth);
  }
  Factor samples_of_set(const float* maps, bool along_depth) const {
    return factor(maps, plan.samples_per_set * plan.square, 0, plan.square, p.size, along_depth);
  }
  // U and G: [sample, term].
  Factor of_terms(int64_t offset, bool along_depth) const {
    return factor(workspace + offset, p.terms * plan.square, 0, plan.square, p.size, along_depth);
  }
  Factor of_samples(int64_t offset, bool along_depth) const {
    const int64_t sample = p.terms * plan.square;
    return factor(workspace + offset, plan.samples_per_set * sample, plan.square, sample, p.size, along_depth);
  }
  Result per_term(float* data) const { return {data, p.terms * plan.square, plan.square, p.size}; }

  void make_projection(int64_t first, int64_t samples, const Result& result, const Difference& difference) {
    if (in_chains(p.size)) {
      Chains chains = {};
      append(chains, samples, {terms_along_depth(p.left), map_along_tile(map), terms_along_depth(p.right), result,
                               difference, 1, p.terms, samples * p.terms});
      launch_chains(chains, precision, stream);
    } else {
      make_u(first, samples);
      multiply({of_terms(plan.u, true), terms_along_depth(p.right), result, difference, 0, samples, 1, p.terms,
                samples * p.terms});
    }
  }

  void make_gradients(int64_t first, int64_t samples, const float* d) {
    const float* a = map + first * plan.square;
    if (in_chains(p.size))
      make_gradients_in_chains(samples, a, d);
    else
      make_gradients_of_products(first, samples, a, d);
    if (gradients.left || gradients.right)
      launch_add_sets({workspace + plan.left_parts, workspace + plan.right_parts, gradients.left, gradients.right,
                       ceil_div(samples, plan.samples_per_set), p.terms, p.size, p.max_size, first > 0},
                      stream);
  }

  void make_gradients_in_chains(int64_t samples, const float* a, const float* d) {
    const int64_t per_set = plan.samples_per_set, sets = ceil_div(samples, per_set);
    const Result d_map = {gradients.map, plan.square, 0, p.size};
    const Result left = per_term(workspace + plan.left_parts), right = per_term(workspace + plan.right_parts);
    Chains chains = {};
    if (gradients.map)
      append(chains, samples, {terms_along_tile(p.left), map_along_tile(d), terms_along_tile(p.right), d_map, {}, 1,
                               p.terms, samples * p.terms});
    if (gradients.left)
      append(chains, sets * p.terms, {samples_of_set(d, true), own_term(p.right, false), samples_of_set(a, true), left,
                                      {}, p.terms, per_set, samples});
    if (gradients.right)
      append(chains, sets * p.terms, {samples_of_set(d, false), own_term(p.left, false), samples_of_set(a, false),
                                      right, {}, p.terms, per_set, samples});
    launch_chains(chains, precision, stream);
  }

  void append(Chains& chains, int64_t results, const Chain& chain) const {
    int at = 0;
    while (at < MOST_CHAINS - 1 && chains.chains[at].inners > 0) ++at;
    chains.size = static_cast<int>(p.size);
    chains.chains[at] = chain;
    const int64_t before = at > 0 ? chains.ends[at - 1] : 0;
    std::fill(chains.ends + at, chains.ends + MOST_CHAINS, before + results * plan.blocks);
  }

  void make_u(int64_t first, int64_t samples) {
    multiply({own_term(p.left, true), map_along_tile(map + first * plan.square), per_term(workspace + plan.u), {}, 0,
              samples, p.terms, 1, samples});
  }

  void make_gradients_of_products(int64_t first, int64_t samples, const float* a, const float* d) {
    const int64_t per_set = plan.samples_per_set, sets = ceil_div(samples, per_set);
    const Factor d_along_depth = factor(d, plan.square, 0, 0, p.size, true);
    const Result d_map = {gradients.map ? gradients.map + first * plan.square : nullptr, plan.square, 0, p.size};
    const Result left = per_term(workspace + plan.left_parts), right = per_term(workspace + plan.right_parts);
    if (gradients.map || gradients.left)
      multiply({d_along_depth, own_term(p.right, false), per_term(workspace + plan.g), {}, 0, samples, p.terms, 1,
                samples});
    if (gradients.map)
      multiply({terms_along_tile(p.left), of_terms(plan.g, false), d_map, {}, 0, samples, 1, p.terms,
                samples * p.terms});
    if (gradients.left)
      multiply({of_samples(plan.g, true), samples_of_set(a, true), left, {}, 0, sets, p.terms, per_set, samples});
    if (gradients.right)
      multiply({samples_of_set(d, false), of_samples(plan.u, false), right, {}, 0, sets, p.terms, per_set, samples});
  }

  void multiply(Products products) {
    products.size = static_cast<int>(p.size);
    launch_products(products, precision, stream);
  }

  const Projection p;
  const float* map;
  const ProjectionGradients gradients;
  const Plan plan;
  void* stream;
  const int precision;
  float* workspace;
  const int64_t corner;
};

}  // namespace

int64_t cuda_workspace_bytes(int64_t terms, int64_t batch, int64_t size, WantedGradients wanted) {
  return Plan(terms, batch, size, wanted).total * static_cast<int64_t>(sizeof(float));
}

void cuda_factorized_projection_forward(const Projection& projection, const float* map, float* output, CudaCall call) {
  Run(projection, map, {}, call).project(output);
}

void cuda_factorized_projection_backward(const Projection& projection, const float* map, const float* output_gradient,
                                         const ProjectionGradients& gradients, CudaCall call) {
  Run(projection, map, gradients, call).differentiate(output_gradient);
}

void cuda_projected_mse(const Projection& projection, const float* student_map, const float* teacher_map,
                        const uint8_t* mask, float* loss, const ProjectionGradients& gradients, CudaCall call) {
  Run(projection, student_map, gradients, call).compare(teacher_map, mask, loss);
}

}  // namespace comet
