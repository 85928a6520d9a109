// SPDX-License-Identifier: Apache-2.0
// Owns the pool's blocks: who references each, which are free, and (prefix_cache.h) what the full ones hold.
//
// A block is in use (references > 0) or free, never both. Freeing a block does not forget its content: a free cached
// block is revived by the next hit, and evicted only when it is handed out again, in the order of eviction_order.h. A
// cached block is never written: only a sequence's blocks past num_sealed_blocks are, and only while nobody else
// references them (copy-on-write).
//
// Sessions (session_table.h) own cached blocks without referencing them: owning gives a block the score that the policy
// gave its owners, and may hold it: those who wait for room do not get it. Leases hold the first blocks of a path and
// let them go last. What a tenant with a floor owns is protected from others (tenant_ledger.h). Without sessions blocks
// go by age alone.
//
// Steps may be in flight: the device runs them in order, so a block may be given new content by a later step as soon as
// it is free; whoever frees sees to it that no step in flight shows a free block.
//
// Every operation on a block is O(1), O(block_size) where it hashes tokens, O(log n) where it orders what may be
// evicted, and allocates nothing but for owners.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/eviction_order.h"
#include "core/lower_tiers.h"
#include "core/owner_table.h"
#include "core/policy.h"
#include "core/prefix_cache.h"
#include "core/sequence.h"
#include "core/tenant_ledger.h"
#include "core/types.h"

namespace paged {

struct BlockManagerConfig {
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 0;  // tokens
  bool enable_prefix_caching = true;
  bool cache_generated_tokens = true;    // false: only blocks of a sequence's prompt are cached and found
  std::int32_t num_step_blocks = 0;      // that one step may need: leases leave as many
  std::int32_t num_sequence_blocks = 0;  // that the longest sequence may need: floors leave as many
  TierSizes lower = {};                  // for copies of cached blocks
};

// Blocks to copy before the step writes its own keys and values. No block is both a source and a destination, so the
// copies may run in any order, or at once. Holds one reference on each source until release_sources() at the commit,
// lest the source be freed and handed out within the same step, or while a step in flight still reads it.
struct BlockCopies {
  std::vector<BlockId> sources;
  std::vector<BlockId> destinations;
};

// A cached block that was taken from its owner.
struct Eviction {
  OwnerSlot owner = kNoOwner;
  SequenceId by = 0;  // that needed the block
};

using TransferId = std::uint64_t;

// Where a block or a copy of one is.
struct Place {
  Tier tier = Tier::kNowhere;
  std::int32_t index = -1;  // block of the device, or slot of a tier below
};

// Blocks to be copied from tier to tier, one after the other; each may take its time. Those of one transfer go to the
// device, or none does. It ends with finish_transfer().
struct BlockTransfer {
  struct Copy {
    Place from;
    Place to;
  };
  TransferId id = 0;
  std::vector<Copy> copies = {};

  bool is_load() const { return copies.front().to.tier == Tier::kDevice; }
  bool is_spill() const { return copies.front().from.tier == Tier::kHost && !is_load(); }
};

// How it ended: all copies before this one were made. With an error this one failed, and the others were not begun.
struct TransferEnd {
  std::int32_t num_done = std::numeric_limits<std::int32_t>::max();
  std::string error = {};
  double host_seconds = 0.0;  // of a load: what was copied from the host took so long; 0: not known
  double disk_seconds = 0.0;  // and from the disk
};

struct Residency {
  std::int32_t num_on_device = 0;
  std::int32_t num_on_host = 0;  // of the same blocks or others
  std::int32_t num_on_disk = 0;
};

// Blocks that a command found where it takes them from or where they should be, and those that are there or on the way.
struct StoredPath {
  std::int32_t num_found = 0;
  std::int32_t num_stored = 0;
};

// Blocks that ever came to a tier, and that went from there to the device.
struct TierTraffic {
  std::int64_t num_stored = 0;
  std::int64_t num_loaded = 0;
};

class BlockManager {
 public:
  using OnEviction = std::function<void(const Eviction&)>;

  // No policy: the least recently used goes first.
  explicit BlockManager(const BlockManagerConfig& config, BlockHash hash = hash_block,
                        std::shared_ptr<const Policy> policy = nullptr);

  // Gives a sequence that holds nothing all blocks for its tokens: the longest cached prefix, then new ones. No
  // token whose logits are wanted is served from the cache: the last one, and those before scored ones. Sets
  // num_computed_tokens. False, with nothing changed, unless `num_spare_blocks` would stay free; those held for others
  // do not count, unless it may take them.
  bool admit(Sequence& sequence, std::int32_t num_spare_blocks, bool may_take_held = true);

  // Tokens that it would find, if it were admitted now.
  std::int32_t num_cached_tokens(Sequence& sequence) const;

  // Makes the num_new_tokens positions after the planned ones writable: new blocks, and a copy of the first one if it
  // is shared or cached. False, with nothing changed, when too few blocks are free.
  bool grow(Sequence& sequence, std::int32_t num_new_tokens, BlockCopies& copies);

  // Caches the blocks that num_computed_tokens has filled since. One whose content another block already holds is
  // replaced by that block: where the kernels are batch invariant both hold the same bits. The replaced one is appended
  // to `retired`, with its reference, for steps in flight may still read it.
  void seal(Sequence& sequence, std::vector<BlockId>& retired);

  // The child, which holds nothing, references every block with computed tokens of the parent. A step in flight may
  // yet fill the last of them for the parent, which then seals it: the child copies it before it writes.
  void share(Sequence& parent, Sequence& child);

  // The owner's path gets the block that holds these tokens behind it; one that is not cached yet is taken of those
  // that are free and held for nobody, and filled by `fill`. False, with nothing changed, if there is none.
  bool append_to_path(OwnerSlot owner, ContentId root, std::span<const TokenId> tokens,
                      const std::function<void(BlockId)>& fill);

  // Frees all blocks of the sequence; nothing of it is computed any more.
  void release(Sequence& sequence);

  void release_sources(const BlockCopies& copies);
  void release_retired(const std::vector<BlockId>& retired);

  // Owners. A sequence with an owner gives it the blocks that it finds and seals.
  void open_owner(OwnerSlot owner, const std::string& tenant);
  void close_owner(OwnerSlot owner);
  // Disowns all blocks past the first num_blocks. Those that nobody else owns or ever used are worth nothing, if the
  // policy says so.
  void truncate_owner(OwnerSlot owner, std::int32_t num_blocks);
  void share_owner(OwnerSlot parent, OwnerSlot child);  // the child owns nothing yet
  void set_score(OwnerSlot owner, const Score& score);
  // Its first num_blocks blocks go last, and those who wait for room do not get them.
  void set_lease(OwnerSlot owner, std::int32_t num_blocks);
  std::int32_t lease(OwnerSlot owner) const { return leases_[static_cast<std::size_t>(owner)]; }
  // That more may be leased: all leases together leave what one step may need.
  std::int32_t num_leasable_blocks() const { return std::max(0, num_leasable_ - num_leased_); }
  // Of so many blocks, for this tenant instead of the floor it had; floors together leave what the longest sequence
  // may need. The floor it has then; kNoRoom, with nothing changed, if kMaxFloors others have one.
  static constexpr std::size_t kMaxFloors = 64;
  static constexpr std::int32_t kNoRoom = -1;
  std::int32_t set_floor(const std::string& tenant, std::int32_t num_blocks);
  const TenantLedger& tenants() const { return tenants_; }
  const OwnerTable& owners() const { return owners_; }
  void set_on_eviction(OnEviction on_eviction) { on_eviction_ = std::move(on_eviction); }
  void set_now(double seconds);
  Pressure& pressure() { return pressure_; }
  const Pressure& pressure() const { return pressure_; }
  std::int32_t num_held_blocks() const { return num_held_free_; }  // free, but held for their owners

  // The tiers below the device (block_transfers.cpp). All do nothing without one.
  // Copies of what there is of the tokens' blocks in the tier, as far as transfers may take the pool and the tiers.
  // With the disk, what the host has of them goes first there.
  StoredPath store_path(ContentId root, std::span<const TokenId> tokens, Tier tier);
  void store_ahead();  // to be called once a step
  // Begins to load what the tiers have of the tokens behind the owner's path, into blocks that are held for nobody.
  std::int32_t prefetch(OwnerSlot owner, SessionId session, ContentId root, std::span<const TokenId> tokens);
  void cancel_prefetch(SessionId session);  // the copies of it that have not begun
  std::int32_t num_loadable(OwnerSlot owner, ContentId root, std::span<const TokenId> tokens) const;
  // The owner's path gets what is cached of the tokens behind it. Its last block.
  BlockId adopt(OwnerSlot owner, ContentId root, std::span<const TokenId> tokens);
  Residency residency(ContentId root, std::span<const TokenId> tokens) const;
  std::vector<BlockTransfer> take_transfers();
  std::vector<TransferId> take_cancelled();  // which may have ended meanwhile
  // The session for which it loaded; 0: none.
  SessionId finish_transfer(TransferId id, const TransferEnd& end = {});
  bool has_transfers() const { return !moving_.empty(); }
  bool is_loading(SessionId session) const;  // for it
  void count_transfer_references(std::vector<std::int32_t>& references) const;
  const TierTraffic& traffic(Tier tier) const { return traffic_[index_of(tier)]; }
  std::int32_t num_copies(Tier tier) const { return lower_ == nullptr ? 0 : lower_->size(tier); }
  std::int64_t num_failed_transfers() const { return num_failed_transfers_; }
  // Why the tier takes nothing more; empty: it does.
  const std::string& write_error() const { return write_error_; }
  // A session's blocks could not be read back.
  using OnUnreadable = std::function<void(SessionId, std::int32_t num_blocks)>;
  void set_on_unreadable(OnUnreadable on_unreadable) { on_unreadable_ = std::move(on_unreadable); }

  // Every sequence holds its salt's root from creation to destruction.
  ContentId acquire_root(const std::string& salt) { return cache_.salts().acquire(salt); }
  void retain_root(ContentId root) { cache_.salts().retain(root); }
  void release_root(ContentId root) { cache_.salts().release(root); }

  std::int32_t blocks_for(std::int32_t num_tokens) const {
    return static_cast<std::int32_t>((std::int64_t{num_tokens} + config_.block_size - 1) / config_.block_size);
  }
  std::int32_t num_free_blocks() const { return order_.num_free(); }
  std::int32_t num_free_blocks_for(const Sequence& sequence) const {
    return order_.num_free() - tenants_.num_protected_from(tenant_of(sequence));
  }
  std::int32_t num_references(BlockId block) const { return references_[static_cast<std::size_t>(block)]; }
  const PrefixCache& cache() const { return cache_; }

  // Throws InternalError with what is wrong, in O(num_blocks): every block is free or in use, the cache is whole, paths
  // have no gap.
  void check_integrity() const;
  // The sequence's blocks are referenced, its sealed ones hold its tokens, and the others are not cached, but for one
  // that it is about to copy.
  void check_integrity(const Sequence& sequence) const;

 private:
  // Leading blocks of the first num_tokens tokens that may be cached.
  std::int32_t num_cacheable_blocks(const Sequence& sequence, std::int32_t num_tokens) const;
  std::int32_t& references(BlockId block) { return references_[static_cast<std::size_t>(block)]; }
  std::span<const TokenId> block_tokens(const Sequence& sequence, std::int32_t index) const;

  BlockId allocate(const Sequence& sequence);
  void evict(BlockId block, SequenceId by);
  BlockWorth worth_of(BlockId block) const;
  TenantSlot tenant_of(const Sequence& sequence) const {
    return sequence.owner == kNoOwner ? kDefaultTenant : owner_tenants_[static_cast<std::size_t>(sequence.owner)];
  }
  std::int32_t held_length(OwnerSlot owner) const;
  void count_held(OwnerSlot owner, std::int32_t length_before);
  void reprice_tail(OwnerSlot owner);
  void take_ownership(const Sequence& sequence, std::int32_t first_new, std::int32_t num_blocks);
  void own(OwnerSlot owner, BlockId block);
  void disown_tail(OwnerSlot owner, bool forget);
  void count_holder(BlockId block, std::int32_t change);
  void check_owners() const;
  void check_tenants() const;
  void retain(BlockId block);
  void release(BlockId block, bool keep_age = false);
  void release_path(std::span<const BlockId> path, bool keep_age = false);  // its end first
  bool is_writable(BlockId block) const;
  void match_prefix(Sequence& sequence) const;
  void copy_on_write(Sequence& sequence, std::size_t index, BlockCopies& copies);
  void seal_next(Sequence& sequence, std::vector<BlockId>& retired);
  void cache_block(BlockId block, ContentId parent, std::span<const TokenId> tokens, BlockId previous);
  std::int32_t num_servable_blocks(const Sequence& sequence) const;

  struct Moving {  // a transfer that has not ended
    std::vector<BlockTransfer::Copy> copies = {};
    std::vector<ContentId> contents = {};  // of each copy
    std::vector<BlockId> held = {};        // referenced: as far as is copied, or what comes before the loaded ones
    std::int32_t num_leaving = 0;          // of those, from the end on, that leave the device then
    SessionId session = 0;                 // for which it loads
    bool is_prefetch = false;
  };
  struct LoadTime {  // of a block from a tier
    double seconds = 0.0;
    double measured_at = 0.0;
  };
  std::int32_t num_storable() const;
  std::vector<BlockId> path_to(BlockId block) const;
  void begin_transfer(Moving moving);
  Place place_below(BlockId block, std::span<const Tier> tiers);
  std::vector<Tier> tiers_worth_a_copy(BlockId block) const;
  void store(std::vector<BlockId> path, std::size_t begin, Tier tier, bool leaves);
  void spill(std::span<const ContentId> contents);
  void spill_ahead();
  void expose_on_host(std::span<const ContentId> contents);
  std::size_t num_worth_loading(std::span<const ContentId> contents, std::int32_t num_before) const;
  bool is_worth_a_copy(ContentId content, std::int32_t length, Tier tier) const;
  void fade_load_times();
  void measure_loads(const Moving& moving, std::int32_t num_done, const TransferEnd& end);
  std::vector<ContentId> loadable(ContentId parent, std::span<const TokenId> tokens, bool& on_its_way) const;
  void load(const Sequence& taker, std::vector<BlockId> held, std::span<const ContentId> contents, bool is_prefetch);
  bool waits_for_load(Sequence& sequence);
  bool waits_for_store(Sequence& sequence, std::int32_t num_new);
  void make_blank(std::int32_t count, bool ahead);
  void finish_store(const Moving& moving, std::int32_t num_done);
  void finish_load(const Moving& moving, std::int32_t num_done, bool failed);
  void drop_unreadable(const Moving& moving, std::size_t failed);
  static std::size_t index_of(Tier tier) { return tier == Tier::kHost ? 0 : 1; }  // of those below the device

  BlockManagerConfig config_;
  std::vector<std::int32_t> references_;       // [num_blocks]
  std::vector<std::int32_t> copy_references_;  // [num_blocks] those of them that BlockCopies hold
  std::vector<std::int32_t> num_holders_;      // [num_blocks] owners that hold it
  std::vector<bool> was_shared_;               // [num_blocks] more than one session or sequence has used it
  EvictionOrder order_;
  PrefixCache cache_;
  std::shared_ptr<const Policy> policy_;  // may be null
  OwnerTable owners_;
  std::vector<Score> scores_;              // [slots]
  std::vector<std::int32_t> leases_;       // [slots] blocks
  std::vector<TenantSlot> owner_tenants_;  // [slots]
  std::vector<TenantSlot> block_tenants_;  // [num_blocks] whose it is; kNoTenant: no session owns it
  std::vector<TenantSlot> lane_tenants_ = {kNoTenant};
  TenantLedger tenants_;
  const std::int32_t num_leasable_;
  std::int32_t num_leased_ = 0;
  std::int32_t num_held_free_ = 0;
  double now_ = 0.0;
  Pressure pressure_;
  OnEviction on_eviction_;
  std::unique_ptr<LowerTiers> lower_;  // may be null
  std::map<TransferId, Moving> moving_;
  std::vector<BlockTransfer> new_transfers_;
  std::vector<TransferId> cancelled_;
  TransferId next_transfer_ = 1;
  std::int32_t num_moving_ = 0;    // blocks of the device in transfers
  std::int32_t num_leaving_ = 0;   // of those, that leave the device with their transfer's end
  std::int32_t num_spilling_ = 0;  // slots of the host in transfers to the disk
  std::array<LoadTime, 2> load_times_;
  std::array<TierTraffic, 2> traffic_;
  std::int64_t num_failed_transfers_ = 0;
  std::string write_error_;
  OnUnreadable on_unreadable_;
};

}  // namespace paged
