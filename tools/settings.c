/* SPDX-License-Identifier: MIT
 *
 * The words that the RINGPOLL variables and their options take. The shim reads
 * the same variables inside the program, where it must not print and a wrong
 * word cannot stop anything, so it ignores what it does not know: this is the
 * place where a typing error is found.
 */
#include "command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ringpoll/ringpoll.h>

const char *const mask_generations[] = {"as-6.1", "as-5.19", "as-5.13", "as-5.10", NULL};

const char *setting(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && *value != '\0' ? value : NULL;
}

static bool is_one_of(const char *word, const char *const *words)
{
    for (; *words != NULL; words++) {
        if (strcmp(word, *words) == 0)
            return true;
    }
    return false;
}

bool check_mode(const char *source, const char *word)
{
    static const char *const modes[] = {"off", "auto", "require", NULL};
    if (is_one_of(word, modes))
        return true;
    complain("%s: '%s' is not a mode; the modes are off, auto and require.", source, word);
    return false;
}

const char *profile_word(const char *word)
{
    static const char *const profiles[] = {"readiness", "safe", "throughput", NULL};
    for (const char *const *profile = profiles; *profile != NULL; profile++) {
        if (strcmp(word, *profile) == 0)
            return *profile;
    }
    return NULL;
}

bool check_profile(const char *source, const char *word)
{
    if (profile_word(word) != NULL)
        return true;
    complain("%s: '%s' is not a profile; the profiles are readiness, safe and throughput.", source, word);
    return false;
}

bool check_mask(const char *source, const char *text)
{
    uint64_t mask;
    const char *word = text;
    size_t length = strlen(text);
    if (ringpoll_mask_parse(text, &mask, &word, &length) == 0)
        return true;
    char accepted[2048];
    size_t used = 0;
    for (const char *const *generation = mask_generations; *generation != NULL; generation++)
        used += (size_t)snprintf(accepted + used, sizeof(accepted) - used, "%s, ", *generation);
    used += (size_t)snprintf(accepted + used, sizeof(accepted) - used, "and no-NAME with one of the names");
    for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT && used < sizeof(accepted); i++) {
        used += (size_t)snprintf(accepted + used, sizeof(accepted) - used, "%s %s", i == 0 ? "" : ",",
                                 ringpoll_feature_name(i));
    }
    complain("%s: '%.*s' is not a mask word; accepted, separated by commas, are %s.", source, (int)length, word,
             accepted);
    return false;
}
