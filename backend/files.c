/* SPDX-License-Identifier: MIT */
#include "files.h"

#include <errno.h>
#include <string.h>

#include "abi.h"
#include "sys.h"

int rp_files_init(struct rp_files *files, struct rp_ring *ring, uint32_t count)
{
    struct rp_rsrc_register reg = {.nr = count, .flags = RP_RSRC_REGISTER_SPARSE};
    memset(files, 0, sizeof *files);
    uint16_t *next = rp_sys_pages(count * sizeof *next);
    if (!next)
        return -ENOMEM;
    int error = rp_ring_register(ring, RP_REGISTER_FILES2, &reg, sizeof reg);
    if (error < 0) {
        rp_sys_pages_free(next, count * sizeof *next);
        return error;
    }
    for (uint32_t i = 0; i < count; i++)
        next[i] = (uint16_t)(i + 1 < count ? i + 2 : 0);
    files->next = next;
    files->count = count;
    files->free_head = 1;
    return 0;
}

void rp_files_abandon(struct rp_files *files)
{
    if (files->next)
        rp_sys_pages_free(files->next, files->count * sizeof *files->next);
    memset(files, 0, sizeof *files);
}

void rp_files_fini(struct rp_files *files, struct rp_ring *ring)
{
    if (files->next)
        (void)rp_ring_register(ring, RP_UNREGISTER_FILES, NULL, 0);
    rp_files_abandon(files);
}

static int update(struct rp_ring *ring, uint16_t slot, int32_t fd)
{
    struct rp_rsrc_update update = {.offset = slot - 1u, .data = (uint64_t)(uintptr_t)&fd};
    return rp_ring_register(ring, RP_REGISTER_FILES_UPDATE, &update, 1);
}

uint16_t rp_files_fill(struct rp_files *files, struct rp_ring *ring, int fd)
{
    uint16_t slot = files->free_head;
    if (!slot || update(ring, slot, fd) < 0)
        return 0;
    files->free_head = files->next[slot - 1];
    files->used++;
    return slot;
}

void rp_files_clear(struct rp_files *files, struct rp_ring *ring, uint16_t slot)
{
    (void)update(ring, slot, -1);
    files->next[slot - 1] = files->free_head;
    files->free_head = slot;
    files->used--;
}
