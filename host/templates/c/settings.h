// Functions for C and C++ that read the settings that `create` receives. The settings are a JSON object. The
// host has validated it against the schema in the manifest, and has filled in the schema's defaults.
//
// Each function finds a setting by its name. If the setting is missing or has another type, the function
// returns false and leaves `value` unchanged.

#ifndef SETTINGS_H
#define SETTINGS_H

#include "host_plugin.h"
#include <stdlib.h>
#include <string.h>

// A part of the JSON text.
typedef struct {
    const char *at, *end;
} SettingsText;

static inline void settings_skip_space(SettingsText *text) {
    while (text->at < text->end && strchr(" \t\r\n", *text->at) && *text->at)
        text->at++;
}

// Skips the value that begins here: a string, a number, a literal, or a whole object or array.
static inline void settings_skip_value(SettingsText *text) {
    int depth = 0;
    bool in_string = false;
    for (; text->at < text->end; text->at++) {
        char c = *text->at;
        if (in_string) {
            if (c == '\\' && text->at + 1 < text->end)
                text->at++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"')
            in_string = true;
        else if (c == '{' || c == '[')
            depth++;
        else if (depth == 0 && (c == ',' || c == '}' || c == ']' || c == ':' || strchr(" \t\r\n", c)))
            return;
        else if (c == '}' || c == ']')
            depth--;
    }
}

// Finds the text of a setting's value. `name` must not contain characters that JSON escapes.
static inline bool settings_find(HostStr config, const char *name, SettingsText *value) {
    SettingsText text = {(const char *)config.ptr, (const char *)config.ptr + config.len};
    settings_skip_space(&text);
    if (text.at == text.end || *text.at != '{')
        return false;
    for (text.at++; text.at < text.end; text.at++) { // After `{` or `,`.
        SettingsText key, found;
        settings_skip_space(&text);
        key.at = text.at;
        settings_skip_value(&text);
        key.end = text.at;
        settings_skip_space(&text);
        if (text.at == text.end || *text.at != ':')
            return false; // The end of the object.
        text.at++;
        settings_skip_space(&text);
        found.at = text.at;
        settings_skip_value(&text);
        found.end = text.at;
        settings_skip_space(&text);
        size_t length = strlen(name);
        if ((size_t)(key.end - key.at) == length + 2 && !memcmp(key.at + 1, name, length)) {
            *value = found;
            return found.at < found.end;
        }
    }
    return false;
}

static inline bool settings_number(HostStr config, const char *name, double *value) {
    SettingsText found;
    char text[64], *end;
    if (!settings_find(config, name, &found) || (size_t)(found.end - found.at) >= sizeof text)
        return false;
    memcpy(text, found.at, (size_t)(found.end - found.at));
    text[found.end - found.at] = 0;
    if (!strchr("-0123456789", *text))
        return false;
    double number = strtod(text, &end);
    if (*end)
        return false;
    *value = number;
    return true;
}

// Rejects integers beyond 2^53: JSON has no integer type, and many programs round such integers.
static inline bool settings_integer(HostStr config, const char *name, int64_t *value) {
    double number;
    if (!settings_number(config, name, &number) || number < -9007199254740992.0 ||
        number > 9007199254740992.0 || (double)(int64_t)number != number)
        return false;
    *value = (int64_t)number;
    return true;
}

static inline bool settings_bool(HostStr config, const char *name, bool *value) {
    SettingsText found;
    if (!settings_find(config, name, &found) || (*found.at != 't' && *found.at != 'f'))
        return false;
    *value = *found.at == 't';
    return true;
}

// Returns the value of the four hexadecimal digits of a `\u` escape.
static inline unsigned long settings_unit(const char *digits) {
    char text[5] = {digits[0], digits[1], digits[2], digits[3], 0};
    return strtoul(text, NULL, 16);
}

// Writes the setting as NUL-terminated UTF-8. Also returns false if the string contains a NUL or needs more
// than `size` bytes.
static inline bool settings_string(HostStr config, const char *name, char *value, size_t size) {
    SettingsText found;
    if (!settings_find(config, name, &found) || *found.at != '"')
        return false;
    char *text = (char *)malloc((size_t)(found.end - found.at)), *to = text;
    bool is_whole = text != NULL;
    for (const char *at = found.at + 1; is_whole && at < found.end - 1; at++) {
        if (*at != '\\') {
            *to++ = *at;
            continue;
        }
        static const char escapes[] = "bfnrt", meanings[] = "\b\f\n\r\t";
        const char *escape = strchr(escapes, *++at);
        if (*at != 'u') {
            *to++ = escape ? meanings[escape - escapes] : *at;
            continue;
        }
        unsigned long code = settings_unit(at + 1);
        at += 4;
        if (code >= 0xd800 && code < 0xdc00 && at + 6 < found.end) { // The first half of a surrogate pair.
            code = 0x10000 + ((code - 0xd800) << 10) + (settings_unit(at + 3) - 0xdc00);
            at += 6;
        }
        if (code < 0x80)
            *to++ = (char)code;
        else if (code < 0x800)
            *to++ = (char)(0xc0 | code >> 6);
        else if (code < 0x10000)
            *to++ = (char)(0xe0 | code >> 12);
        else
            *to++ = (char)(0xf0 | code >> 18);
        if (code >= 0x10000)
            *to++ = (char)(0x80 | (code >> 12 & 0x3f));
        if (code >= 0x800)
            *to++ = (char)(0x80 | (code >> 6 & 0x3f));
        if (code >= 0x80)
            *to++ = (char)(0x80 | (code & 0x3f));
        is_whole = code != 0;
    }
    is_whole = is_whole && (size_t)(to - text) < size;
    if (is_whole) {
        memcpy(value, text, (size_t)(to - text));
        value[to - text] = 0;
    }
    free(text);
    return is_whole;
}

#endif
