/* SPDX-License-Identifier: MIT
 *
 * Requests that carry bytes: writes of a stream, datagrams to be sent. Each is in one queue
 * of its handle:
 *
 *   waiting ──all its bytes taken, or an error──→ written ──our turn──→ the program's, callback
 *
 * The memory is the program's throughout; the list of buffers is a copy.
 */
#include "inside.h"

#include <stdlib.h>
#include <string.h>

void queue_init(struct queue *queue)
{
    queue->first = NULL;
    queue->last = &queue->first;
}

static void enqueue(struct queue *queue, struct request *request)
{
    request->next = NULL;
    *queue->last = request;
    queue->last = &request->next;
}

static size_t bytes_left(const struct request *request)
{
    size_t bytes = 0;
    for (uint32_t i = request->at; i < request->count; i++)
        bytes += request->bufs[i].len;
    return bytes;
}

int request_wait(struct handle *handle, struct request *request, const uv_buf_t *bufs, uint32_t count)
{
    bool is_few = count <= sizeof request->few / sizeof request->few[0];
    request->bufs = is_few ? request->few : malloc(count * sizeof *bufs);
    if (!request->bufs)
        return UV_ENOMEM;
    if (count > 0)
        memcpy(request->bufs, bufs, count * sizeof *bufs);
    request->user = handle->user;
    request->count = count;
    request->at = 0;
    request->error = 0;
    handle->requests++;
    handle->waiting_bytes += bytes_left(request);
    enqueue(&handle->waiting, request);
    return 0;
}

void request_finish_first(struct handle *handle, int error)
{
    struct request *request = handle->waiting.first;
    handle->waiting.first = request->next;
    if (!handle->waiting.first)
        handle->waiting.last = &handle->waiting.first;
    handle->waiting_bytes -= bytes_left(request);
    request->error = error;
    enqueue(&handle->written, request);
}

void requests_tell(struct handle *handle, void (*call)(struct request *request))
{
    struct request *request = handle->written.first, *next;
    queue_init(&handle->written);
    for (; request; request = next) {
        next = request->next;
        if (request->bufs != request->few)
            free(request->bufs);
        request->bufs = request->few;
        handle->requests--;
        handle_changed(handle);
        call(request);
    }
}
