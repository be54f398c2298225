/* SPDX-License-Identifier: MIT
 *
 * A strict reader of JSON (RFC 8259), small: the tests must find out whether
 * what the command prints is JSON, and look at it, without another program.
 */
#ifndef TESTS_COMMAND_JSON_H
#define TESTS_COMMAND_JSON_H

#include <cctype>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace json {

struct Value {
    enum Kind { Null, Bool, Number, String, Array, Object } kind = Null;
    bool boolean = false;
    double number = 0;
    std::string string;
    std::vector<Value> array;
    std::map<std::string, Value> object;

    const Value &operator[](const std::string &key) const
    {
        auto found = object.find(key);
        if (found == object.end())
            throw std::runtime_error("no member \"" + key + "\"");
        return found->second;
    }
};

class Reader {
public:
    explicit Reader(const std::string &input) : text(input) {}
    Value whole()
    {
        Value value = element();
        if (at != text.size())
            fail("something after the end");
        return value;
    }

private:
    const std::string &text;
    size_t at = 0;

    [[noreturn]] void fail(const std::string &what) const
    {
        throw std::runtime_error("JSON, byte " + std::to_string(at) + ": " + what);
    }
    void blanks()
    {
        while (at < text.size() && std::string(" \t\r\n").find(text[at]) != std::string::npos)
            at++;
    }
    bool take(char c)
    {
        if (at >= text.size() || text[at] != c)
            return false;
        at++;
        return true;
    }
    void need(const std::string &word)
    {
        if (text.compare(at, word.size(), word) != 0)
            fail("expected " + word);
        at += word.size();
    }
    Value element()
    {
        blanks();
        Value value = bare();
        blanks();
        return value;
    }
    Value bare()
    {
        Value value;
        if (at >= text.size())
            fail("the end, where a value should be");
        switch (text[at]) {
        case 'n':
            need("null");
            return value;
        case 't':
            need("true");
            value.kind = Value::Bool;
            value.boolean = true;
            return value;
        case 'f':
            need("false");
            value.kind = Value::Bool;
            return value;
        case '"':
            value.kind = Value::String;
            value.string = quoted();
            return value;
        case '[':
            return array();
        case '{':
            return object();
        default:
            return number();
        }
    }
    size_t digits()
    {
        size_t begin = at;
        while (at < text.size() && isdigit(static_cast<unsigned char>(text[at])))
            at++;
        if (at == begin)
            fail("expected a digit");
        return at - begin;
    }
    Value number()
    {
        size_t begin = at;
        take('-');
        bool zero = at < text.size() && text[at] == '0';
        if (digits() > 1 && zero)
            fail("a number that begins with 0");
        if (take('.'))
            digits();
        if (take('e') || take('E')) {
            if (!take('+'))
                take('-');
            digits();
        }
        Value value;
        value.kind = Value::Number;
        value.number = strtod(text.substr(begin, at - begin).c_str(), nullptr);
        return value;
    }
    std::string quoted()
    {
        std::string result;
        need("\"");
        while (!take('"')) {
            if (at >= text.size())
                fail("a string without end");
            char c = text[at++];
            if (static_cast<unsigned char>(c) < ' ')
                fail("a control character in a string");
            if (c == '\\') {
                static const std::string codes = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
                c = at < text.size() ? text[at++] : '\0';
                size_t code = codes.find(c);
                if (c == 'u') {
                    for (int i = 0; i < 4; i++) {
                        if (at >= text.size() || !isxdigit(static_cast<unsigned char>(text[at++])))
                            fail("expected four hexadecimal digits");
                    }
                    c = '?'; /* which one it is does not matter here */
                } else if (c == '\0' || code == std::string::npos) {
                    fail("an unknown escape");
                } else {
                    c = meanings[code];
                }
            }
            result += c;
        }
        return result;
    }
    Value array()
    {
        Value value;
        value.kind = Value::Array;
        need("[");
        blanks();
        if (take(']'))
            return value;
        do {
            value.array.push_back(element());
        } while (take(','));
        need("]");
        return value;
    }
    Value object()
    {
        Value value;
        value.kind = Value::Object;
        need("{");
        blanks();
        if (take('}'))
            return value;
        do {
            blanks();
            std::string key = quoted();
            blanks();
            need(":");
            if (!value.object.emplace(key, element()).second)
                fail("the member \"" + key + "\" twice");
        } while (take(','));
        need("}");
        return value;
    }
};

inline Value read(const std::string &text)
{
    return Reader(text).whole();
}

} // namespace json

#endif
