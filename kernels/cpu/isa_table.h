/* The table of the instruction set that includes this, last in isa_*.c. */
#define ISA_TABLE                                                                                                         \
  {                                                                                                                       \
    .name = ISA_NAME, .mr = MR, .nr = NR, .pack_x = pack_x, .pack_w = pack_w, .tile = tile, .pack_x_pairs = pack_x_pairs, \
    .pack_w_pairs = pack_w_pairs, .tile_pairs = tile_pairs, .finish = finish, .dots = dots, .round_bf16 = round_bf16,     \
    .attend = attend, .attend_rounded = attend_rounded, .attend_pairs = attend_pairs, .attend_rows = attend_rows,         \
    .store_kv = store_kv, .layernorm = layernorm, .rmsnorm = rmsnorm, .cosine_concat = cosine_concat, .rope = rope,       \
    .add = add_rows, .silu_mul = silu_mul, .widen = widen                                                                 \
  }
_Static_assert(MR <= MR_MAX && NR <= NR_MAX && GEMM_NB % NR == 0, "the scratch is sized for this tile");
_Static_assert(SUB % MR == 0 && (int)SUB <= (int)ATTENTION_SUB_MAX, "tiles fill the blocks of queries");
