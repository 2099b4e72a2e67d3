"""Request templates of the demo data, by tool and split. The held-out templates never occur in training.

`(a|b|)` chooses; `{slot}` is filled by `generate.py`, which also derives the arguments from it. A line that starts with
`=` is not an imperative: it takes no "could you". A template that begins or ends with a verbatim slot is recognised as
such by the generator (no capital is forced on it, no politeness without a comma behind it).
"""

ARGUMENTS = {
    "set_alarm": ["time", "day"],
    "set_timer": ["amount", "unit"],
    "send_message": ["to", "text"],
    "call_contact": ["name", "speaker"],
    "create_event": ["title", "day", "time"],
    "add_reminder": ["text", "day", "time"],
    "play_music": ["title", "artist", "playlist"],
    "set_volume": ["level"],
    "set_brightness": ["level"],
    "toggle_setting": ["setting", "state"],
    "navigate_to": ["place", "mode"],
    "get_weather": ["place", "day"],
    "open_app": ["app"],
    "search_web": ["query"],
    "translate_text": ["text", "language"],
    "add_to_list": ["item", "list"],
    "take_photo": ["camera", "timer"],
}

TRAIN = {
    "set_alarm": """
    (wake me|wake me up|get me up|wake us up|get me out of bed) {when}
    (wake me|wake me up|get me up) (by|before|around) {whenfor}
    (set|create|make|add|put|start|schedule|program) (an|the|my|one|a new|another) alarm {when}
    (set|create|make|add|put|start|schedule) (an|the|my|one|a new) (alarm|wake up call|wake-up alarm) (for|to) {whenfor}
    (set|put) (the alarm clock|my alarm clock|my morning alarm|the clock) (for|to) {whenfor}
    (set|create|add) an alarm {day} for {time}
    =alarm {when}
    =alarm (for|,|) {whenfor}
    ={whenfor} alarm
    =I (need|want|have|must) to (wake up|get up|be up|be awake) {when}
    =I (need|want) (an|the) alarm (for|to ring) {whenfor}
    =(make sure|ensure) (that|) I (wake up|get up|am up|am awake) {when}
    =I (should|have to) be (up|awake) (by|before) {whenfor}
    (ring|buzz|beep) (the alarm|my alarm|) {when}
    =don't let me sleep (past|beyond|after) {whenfor}
    (turn on|switch on|activate) (an|the|my) alarm for {whenfor}
    =(can I|could I) (get|have) (an|a) (alarm|wake up call) (for|) {when}
    ={daily} wake me (up|) at {time}
    wake me (up|) at {time} {daily}
    (set|make) (a daily|a repeating|a) alarm at {time} {daily}
    (have|get) an alarm (ready|set|ringing|waiting) {when}
    =I'd like to be woken (up|) {when}
    =I'd like to be (up|out of bed|awake) (by|before) {whenfor}
    =my alarm (should|must|has to) (ring|go off|sound) {when}
    =there should be an alarm {when}
    (let|make) my phone (wake me|ring|buzz) {when}
    (give|get) (me|us) a wake up call {when}
    =we (have to|must|need to) (get up|wake up|be up) {when}
    =can you have me (up|awake) by {whenfor}
    another alarm {when}
    =next alarm: {whenfor}
    """,
    "set_timer": """
    (set|start|create|make|put|run|begin) (a|the|my|one|another) timer (for|of|with) {amount}
    (set|start|create|make|put on) (a|an) {amount1} timer
    =timer (for|) {amount}
    ={amount1} timer
    ={amount} timer
    (set|start) the timer to {amount}
    (time|count down|countdown) {amount}
    (start|begin|run) (a|the) countdown (of|for) {amount}
    (start|begin) counting down {amount}
    =(tell me|let me know|notify me|alert me|ping me|beep) (in|after) {amount}
    =(tell me|let me know|notify me|alert me) when {amount} (are over|have passed|are up|is over|has passed|is up)
    =I (need|want) a timer (for|of) {amount}
    =I (need|want) (a|an) {amount1} (timer|countdown)
    (set|start) (the|a) (egg|kitchen|cooking|tea|pasta|oven|workout|nap) timer (for|to) {amount}
    (give me|have) {amount} on the (clock|timer)
    (count|time) (down from|me for) {amount}
    (put|get) a timer on for {amount}
    (give me|start) {amount}
    =how about a timer (of|for) {amount}
    =wake the timer in {amount}
    (let|have) the timer (run|go) (for|) {amount}
    (buzz|ring|call|signal) (me|) (in|after|when) {amount} (are done|have gone|)
    (do|make|open) a {amount1} (timer|countdown)
    =there should be a timer for {amount}
    another timer, {amount}
    =countdown of {amount}
    time me for {amount}
    =shout after {amount}
    (be sure to|do not forget to|make sure to|try to|remember and|see that you) (ring|buzz|ping|alert|notify|signal|wake|call|tell|shout at|poke) (me|us|) (in|after) {amount}
    (I want you to|you should|you must|you have to|you can) (ring|buzz|beep|ping|alert|notify|signal|call|tell) (me|us) (in|after) {amount}
    =after {amount} (beep|buzz|ring|tell me|stop me|call me)
    =in {amount} (beep|buzz|ring|tell me|stop me)
    (wait|stop me|stop the cooking|interrupt me) (for|after|in) {amount}
    """,
    "send_message": """
    (send|write|shoot) (a|an|another|one) (message|text|sms|note) to {name} (saying|that says|with the text|with|which says) {msg}
    (send|write|shoot) (a|) (message|text) to {name} : {msg}
    (send|write) {name} (a|another) (message|text|sms) (saying|that says|with the words|telling them|that) {msg}
    (text|message|sms) {name} (saying|that|the words|and say|with) {msg}
    (text|message|sms|write) {name1} {msg}
    (text|message|tell|write to|write) {name}: {msg}
    tell {name} that {msg}
    tell {name1} {msg}
    =let {name} know (that|) {msg}
    (send|text|message) "{msg}" to {name}
    (send|write|text) the (message|words|text) "{msg}" to {name}
    send the (message|words|text) {msg} to {name}
    (text|message|tell) {name} "{msg}"
    =(message|text|sms) to {name}: {msg}
    =(message|text|sms) to {name} {saying} {msg}
    =I (want|need) to (text|message|tell|write to) {name} (that|saying|:) {msg}
    =I (want|need) to send {name} (a|the) (message|text) (saying|that says) {msg}
    (drop|send) {name} a (line|note|message) (saying|that) {msg}
    (reply|respond|answer) to {name} (with|saying|that) {msg}
    (inform|notify) {name} that {msg}
    (ask|remind) {name} (this|in a message|by text): {msg}
    (mention|report|explain|announce|write|repeat) to {name} that {msg}
    make {name} aware that {msg}
    pass on to {name} that {msg}
    ={name} (should|must|needs to|has to) (know|hear|be informed|learn) that {msg}
    =(can|would) {name} be (informed|notified|texted) that {msg}
    (prepare|create|draft|type|make) a (message|text|note|sms) (to|for) {name} (that says|saying|which reads|with): {msg}
    (prepare|create|draft|type) a (message|text) (to|for) {name} (that says|saying|with) {msg}
    (give|forward|get) {name} (this|the following) (message|text|note): {msg}
    (give|forward|get) {name} the message that {msg}
    (text|write|send|message) {name} the following: {msg}
    =message for {name}: {msg}
    =text for {name} saying {msg}
    (post|get) a (message|note) to {name} saying {msg}
    quick (message|text) to {name}: {msg}
    (send|give|bring|get) (news|notice|a signal|a hint|an answer|greetings) to {name} that {msg}
    =(can|could|should|will) {name} (hear|learn|read|know|find out) that {msg}
    =(can|should|will) {name} be (warned|notified|alerted|contacted|asked) that {msg}
    send {name} (that|the|these|the next|one) (message|text|words|note|line): {msg}
    (start|begin|open|write) (a|the) (note|sms|message|line) (to|for) {name} (which|that) (reads|goes|says) {msg}
    =(text|note|line|sms) (to|for) {name}: {msg}
    (leave|hand|bring|get) (a|the) (message|note) to {name} (saying|that|with the words) {msg}
    (say|speak|call out|whisper|shout) to {name}: {msg}
    (warn|assure|remind|alert) {name} that {msg}
    =a (text|message|note) (to|for) {name} saying {msg}
    """,
    "call_contact": """
    (call|ring|phone|dial) {name}
    (call|ring|phone) (up|) {name} {speaker}
    (give|make) {name} a (call|ring|buzz)
    (give) {name} a (call|ring) {speaker}
    (make|place|start) a (call|phone call|voice call) (to|with) {name}
    (make|place|start) a call to {name} {speaker}
    (dial|get) (the number of|the number for) {name}
    get {name} on the (phone|line)
    =I (want|need|would like|have) to (call|ring|phone|speak to|talk to|speak with|talk with) {name}
    =I (want|need) to (call|talk to) {name} {speaker}
    =(let me|I must) (call|talk to|speak to|speak with|talk with) {name}
    (connect|put) me (to|through to|with) {name}
    (start|begin) (calling|a conversation with) {name}
    (call|phone) {name} (on|at) (the|their) (phone|mobile|cell)
    call {name} (back|again|right away|right now|immediately)
    (begin|make|set up) a (phone|voice|quick|short) call (to|with) {name}
    (place|do|set up) a quick (call|ring) (to|with) {name}
    (try|reach|contact|get hold of) {name} (by phone|on the phone)
    =may I (speak|talk) (to|with) {name}
    =could you get me {name} on the (line|phone)
    =I'd like {name} on the (phone|line)
    =let us (call|phone|ring) {name}
    =time to (call|phone|ring) {name}
    =is it possible to (call|talk to|speak to) {name}
    (put|patch) me through to {name} {speaker}
    (have|let) me (talk|speak) (to|with) {name}
    (return|make) {name}'s call
    (call|ring|dial) {name} now {speaker}
    (get|send|run|take) a call (over|out|across) to {name}
    (begin|attempt|keep|go on|resume) (calling|phoning|ringing|dialling) {name}
    =(I'd|I would|we'd) (love|rather|prefer|want) to (call|phone|ring|speak with|talk to) {name}
    =(could|may|will) (I|we) (call|phone|ring|speak to|have) {name} {speaker}
    =(could|may|will) (I|we) (call|phone|ring|speak to|speak with) {name}
    do a (video|short|phone|voice) call (with|to) {name}
    """,
    "create_event": """
    (schedule|book|plan|create|add|arrange|set up|organise|put) {a_title} {whend}
    (schedule|book|plan|create|add|arrange) {a_title} for {whendfor}
    (add|put|enter|write|insert|save) {a_title} (to|in|into|on) (my|the) (calendar|diary|agenda|schedule) {whend}
    (add|put|enter|write|insert|save) {a_title} (to|in|into|on) (my|the) (calendar|diary|agenda|schedule) for {whendfor}
    (create|add|make|put|insert) (an|a new|a calendar) (event|entry|appointment) (called|named|titled|for|:) {title} {whend}
    (create|add|make) an event {whend} (called|named|titled|for|:) {title}
    (put|mark|pencil in|write down|note) {a_title} {whend}
    (put|block) {whend} (in my calendar|in the calendar|in my diary) for {title}
    =new (event|appointment|entry|calendar event) {title} {whend}
    =new (event|appointment): {title} {whend}
    =I have {a_title} {whend} (put it in my calendar|add it to my calendar|save it|write it down)
    ={title} is {whend}, (put it in my calendar|add it to my calendar|save the date)
    =(calendar|schedule|event) {title} {whend}
    (schedule|book|plan) {whend} {a_title}
    (set up|make) an appointment {whend} for {title}
    =I (want|need) to (schedule|plan|book) {a_title} {whend}
    (add|put) {title} {whend} (to|in) my calendar
    (get|have) {a_title} (planned|booked|arranged|noted|put down) for {whendfor}
    (see that|make sure) {a_title} is (in|on) my calendar {whend}
    (pencil|write|mark|note) {title} in for {whendfor}
    =there's {a_title} {whend}, (note it|write it in my diary|add it to the calendar|schedule it)
    =there will be {a_title} {whend}, (mark it in my calendar|note it down)
    =we have {a_title} {whend}, (put that in my calendar|please save it)
    =my calendar (needs|should have) {a_title} {whend}
    (make|create|add|write) a (diary|schedule|calendar) entry for {title} {whend}
    (make|add|open) a new (event|entry) {whend} (for|:) {title}
    (write|store|record|insert) {title} {whend} in (my|the) (calendar|agenda|diary)
    (reserve|keep|hold|block) {whendfor} for {a_title}
    (submit|record|insert) a new (event|entry|appointment) : {title} {whend}
    =let's (have|do|schedule|plan) {a_title} {whend}
    (create|add) the event {title} {whend}
    (get|have|see|want) {a_title} {done} for {whendfor}
    (get|have|see) {a_title} {done} {whend}
    (note|place|lock in|slot|file|log|keep|move|leave|give me) {a_title} for {whendfor}
    =there's {a_title} {whend}, {done} in (the|my) (diary|agenda|schedule|calendar)
    =there will be {a_title} {whend}, (get|have|keep) it (in|on) (the|my) (diary|agenda|schedule|calendar)
    """,
    "add_reminder": """
    remind me to {task}
    remind me {maybewhen} to {task}
    remind me to {task} {maybewhen}
    (set|create|add|make) (a|another|one) reminder to {task} {maybewhen}
    (set|create|add|make) a reminder {maybewhen} to {task}
    (set|create|add) a reminder to {task}
    (set|create|add) a reminder (for|:) {maybewhenfor} to {task}
    =reminder to {task} {maybewhen}
    =reminder: {task} {maybewhen}
    =reminder {maybewhen}: {task}
    =(don't|do not) let me forget to {task}
    =(don't|do not) let me forget to {task} {maybewhen}
    =(help me|make me) (remember|think) to {task} {maybewhen}
    =I (need|have|must) (to be reminded|a reminder) to {task} {maybewhen}
    =I (must|should) not forget to {task} {maybewhen}
    =(make sure|see to it that) I {task} {maybewhen}
    (notify|alert|ping|nudge) me {maybewhen} to {task}
    (notify|alert|nudge) me to {task} {maybewhen}
    =(tell|ask) me {maybewhen} to {task}
    =I want you to remind me to {task} {maybewhen}
    ={maybewhen} remind me to {task}
    ={maybewhen}, remind me to {task}
    (leave|drop|get) me a (reminder|note) to {task} {maybewhen}
    (leave|write|get) me a reminder {maybewhen} to {task}
    =I'd like to be reminded to {task} {maybewhen}
    =I'd like to be reminded {maybewhen} to {task}
    =can I get a reminder to {task} {maybewhen}
    =please see that I do not forget to {task} {maybewhen}
    =I (can't|cannot|mustn't|shouldn't) forget to {task} {maybewhen}
    (keep|stop) me from forgetting to {task} {maybewhen}
    (keep in mind|remember) that I (have to|need to|must|should) {task} {maybewhen}
    (put|place|have) a reminder in to {task} {maybewhen}
    =another reminder: {task} {maybewhen}
    =a reminder {maybewhen} to {task}
    (bug|poke|warn) me {maybewhen} to {task}
    """,
    "play_music": """
    play {song} by {artist}
    play the (song|track|tune|album|record) {song} by {artist}
    play {song} from {artist}
    (put on|start|start playing|turn on|stream) {song} by {artist}
    (put on|start|stream) the (song|track|album) {song} by {artist}
    play (the|that) (song|track|tune|album) (called|named|) {song}
    (put on|start|stream|start playing) the (song|track|album) {song}
    play {song}
    =I (want|would like|need|'d love) to (hear|listen to|play) {song} by {artist}
    =I (want|would like) to (hear|listen to) the (song|track|album) {song}
    =let me (hear|listen to) {song} by {artist}
    =let me (hear|listen to) the (song|track) {song}
    play (something|music|some music|a song|songs|anything|a track) (by|from|of) {artist}
    (put on|start|stream|turn on) (something|music|some music|some songs|anything) (by|from) {artist}
    =I (want|would like) to (hear|listen to) (something|music|songs|some music) (by|from) {artist}
    play (the|an) album by {artist}
    play the artist {artist}
    play (my|the) {playlist} playlist
    (put on|start|stream|shuffle|turn on) (my|the) {playlist} playlist
    (play|start|shuffle) (my|the) playlist (called|named|) {playlist}
    (play|shuffle) the {playlist} mix playlist
    =I (want|would like) to (hear|listen to) (my|the) {playlist} playlist
    (play|start) (music|songs) from (my|the) {playlist} playlist
    (let us|let me|we want to|we'd like to) (hear|listen to|enjoy) {song} by {artist}
    (find|bring up|look for) {song} by {artist} and play it
    (find|get|bring up) the (song|track|tune) {song} and play it
    =how about {song} by {artist}
    =I (feel like|am in the mood for) (listening to|hearing|) {song} by {artist}
    =I (feel like|am in the mood for) (something|some music|songs) by {artist}
    (give|get|bring) (me|us) (the song|the track|) {song} by {artist}
    (play|bring) (us|me) {song} by {artist}
    (play|bring) (us|me) (something|some music|a song|a tune) (by|from) {artist}
    (begin|resume|continue|go on with) (the song|the track) {song}
    (put|get|have) (my|the) {playlist} playlist (playing|running|going)
    (run|open|use|begin|resume) (my|the) {playlist} playlist
    (put|have) the (song|track|tune) {song} by {artist} on
    music by {artist}
    =the (song|track|tune) {song} (please|)
    (fire up|load|open|launch|run|bring up|kick off|open up|get up) the (song|track|tune|album|record) {song}
    (fire up|load|open|launch|run|find|start up) the (track|tune|album|record) {song} by {artist}
    =(I'd|we'd) (love|prefer|like) to (listen to|play|enjoy|have) {song} by {artist}
    (get|have|see) my {playlist} playlist {done}
    (get|have) the (song|track|tune|album) {song} {done}
    (give us|show me|let me have|let's have|let's play) {song} by {artist}
    (put on|give me|find me|play us) (more|any|many|lots of|two|new) (songs|tracks|tunes|music) (by|from) {artist}
    (play|start|put on) the (piece|melody|hit|number|recording) {song} by {artist}
    """,
    "set_volume": """
    (set|turn|put|change|adjust|bring|move) (the|my|) (volume|sound|sound level|media volume|speaker volume) to {level}
    (turn|bring) (the|my) (volume|sound) (up|down) to {level}
    (turn|bring) (up|down) the (volume|sound) to {level}
    =(volume|sound|sound level|loudness) {level}
    =(volume|sound) (to|at) {level}
    (make|play) (the volume|the sound|it|everything) {level} (loud|volume)
    (raise|lower|increase|decrease|reduce) (the|) (volume|sound) to {level}
    =I (want|need|would like) the (volume|sound) (at|to be|on) {level}
    =the (volume|sound) should be (at|) {level}
    ={level} volume
    {mute}
    {loudest}
    (have|leave|hold|fix) the (volume|sound) (set|fixed|) (to|at|on) {level}
    =the volume (has to|must|ought to|needs to) be {level}
    (give|get) me {level} volume
    (push|pull|crank|drop|drag|slide) the (volume|sound) (up|down|) to {level}
    =sound volume: {level}
    =let's have the (volume|sound) (at|on) {level}
    (speaker|media|phone|music) volume (to|at|) {level}
    =how about {level} volume
    volume level {level}
    """,
    "set_brightness": """
    (set|turn|put|change|adjust|bring|move) (the|my|) (brightness|screen brightness|display brightness|screen light) to {level}
    (turn|bring) (the|my) (brightness|screen brightness|screen) (up|down) to {level}
    (turn|bring) (up|down) the brightness to {level}
    =(brightness|screen brightness|display brightness|screen) {level}
    =(brightness|screen brightness) (to|at) {level}
    (make|set) (the|my) (screen|display|phone) {level} bright
    (dim|darken|brighten) (the|my) (screen|display|phone) to {level}
    (raise|lower|increase|decrease|reduce) (the|) (brightness|screen brightness|display brightness) to {level}
    =I (want|need|would like) the (brightness|screen|display) (at|to be|on) {level}
    =the (brightness|screen brightness) should be (at|) {level}
    ={level} brightness
    {dimmest}
    {brightest}
    (have|leave|hold|fix) the (brightness|screen|display) (set|fixed|) (to|at|on) {level} (brightness|)
    =the brightness (has to|must|ought to|needs to) be {level}
    (give|get) me {level} brightness
    (push|pull|crank|drop|drag|slide) the (brightness|screen brightness) (up|down|) to {level}
    =let's have the (brightness|screen|display) (at|on) {level}
    (phone|monitor|backlight) brightness (to|at|) {level}
    =how about {level} brightness
    brightness level {level}
    set the backlight to {level}
    """,
    "toggle_setting": """
    (turn|switch) {on} {setting}
    (turn|switch) {setting} {on}
    {enable} {setting}
    {enable} {setting} (on|for) (my|this|the) phone
    ={setting} {on}
    =I (want|need) {setting} {on}
    =I (want|need) {setting} (turned|switched) {on}
    =I (want|need|would like) to (turn|switch) {on} {setting}
    =I (want|need|would like) to {enable} {setting}
    (put|set|get) {setting} {on}
    (set|change|put) {setting} to {on}
    =(make sure|check that|ensure) (that|) {setting} is {on}
    =(is|are) {setting} on? (turn|switch) it {on}
    go {on} with {setting}
    (leave|keep|hold|flip) {setting} {on}
    =let's (have|put|turn|switch) {setting} {on}
    =please, {setting} {on}
    =can I have {setting} {on}
    =we (need|want) {setting} (turned|switched|) {on}
    =it would be (good|great|helpful) to have {setting} {on}
    ={setting} (should|must|has to|needs to) be {on}
    (bring|take) {setting} {on}
    =how about {setting} {on}
    =I'd (love|prefer) {setting} {on}
    (flip|put) {on} {setting}
    """,
    "navigate_to": """
    (navigate|go|head|route|guide me|bring me|take me) to {place}
    (navigate|go|route|guide me|bring me|take me|get me) to {place} {mode}
    (give me|show me|get|get me|find|I need) (directions|the way|a route|the route|the directions) to {place}
    (give me|show me|get|find|I need) (directions|the way|a route|the route) to {place} {mode}
    (start|begin|launch) (navigation|navigating|directions|the navigation) to {place}
    =how (do I|can I|do we|can we|to) (get|go) to {place}
    =how (do I|can I|do we|can we|to) (get|go) to {place} {mode}
    =(what is|what's) the (best|fastest|quickest|shortest) (way|route) to {place}
    =(what is|what's) the (best|fastest|quickest|shortest) (way|route) to {place} {mode}
    =directions to {place}
    =(directions|route|way) to {place} {mode}
    {modeverb} (me |us |){to_place}
    =I (want|need|have|would like) to (go|get|travel) to {place}
    =I (want|need|have|would like) to {modeverb} {to_place}
    =I (want|need|have|would like) to (go|get|travel) to {place} {mode}
    (find|plan|calculate) (a|the|my) (way|route|trip|journey) to {place}
    =(where is|where's) {place} and how do I get there
    =what (way|road|route) (leads|goes|is it) to {place}
    =which (road|route|direction) (leads|goes|do I take) to {place}
    =which way (do I go|is it) to {place} {mode}
    (make|create|start|open|prepare) (a|the) (route|way) to {place}
    (make|create|start|open|prepare) (a|the) (route|trip) to {place} {mode}
    (direct|steer|point|send|escort) me to {place}
    (direct|steer|point|send) me to {place} {mode}
    =let's (go|head|travel) to {place}
    =let's (go|head|travel) to {place} {mode}
    =I (am going|am heading|must get|wish to go) to {place} {mode}
    =I'd like (the way|a route|to go) to {place}
    =what's the way to {place} {mode}
    (help|assist) me (reach|find) {place}
    =could you get us to {place}
    (drag|carry|drive|fly|pull|see|accompany) (me|us) to {place}
    (drag|carry|walk|see|accompany) (me|us) to {place} {mode}
    """,
    "get_weather": """
    =(what is|what's|how is|how's) the (weather|forecast|weather forecast|weather like)
    =(what is|what's|how is|how's) the (weather|forecast|weather like|temperature) in {city}
    =(what is|what's|how is|how's) the (weather|forecast|weather like) {dayw}
    =(what is|what's|how is|how's) the (weather|forecast|weather like) in {city} {dayw}
    =(what is|what's|how is|how's) the (weather|forecast|weather like) {dayw} in {city}
    =(will it|is it going to|does it) (rain|snow|be sunny|be cold|be warm|be windy|be hot|freeze) {dayw}
    =(will it|is it going to) (rain|snow|be sunny|be cold|be warm|be windy|be hot|freeze) in {city} {dayw}
    =(will it|is it going to) (rain|snow|be sunny|be cold|be warm|be hot) {dayw} in {city}
    =is it (raining|snowing|cold|warm|sunny|hot|windy) in {city}
    (show|give|tell|get) me the (weather|forecast|weather forecast|weather report) for {city}
    (show|give|tell|get) me the (weather|forecast|weather forecast|weather report) for {city} {dayw}
    (show|give|tell|get) me the (weather|forecast|weather report) for {dayx}
    (show|check|get|tell me) the (weather|forecast|weather forecast) in {city} {dayw}
    (show|check|get|tell me) the (weather|forecast)
    ={city} (weather|forecast)
    ={city} weather {dayw}
    =weather {city}
    =(weather|forecast|weather forecast) (in|for) {city}
    =(weather|forecast|weather forecast) (in|for) {city} {dayw}
    =weather (forecast|) {dayw}
    =(do I need|should I take|will I need) (an umbrella|a coat|a jacket|sunglasses) {dayw}
    =(do I need|should I take|will I need) (an umbrella|a coat|a jacket|sunglasses) in {city} {dayw}
    =how (cold|warm|hot|windy) (is it|will it be|is it going to be) in {city} {dayw}
    =how (cold|warm|hot|windy) (is it|will it be|is it going to be) {dayw}
    =is there any (rain|snow|sun|wind|fog) (coming|expected|) in {city} {dayw}
    =is there any (rain|snow|sun|wind|fog) (coming|expected|) {dayw}
    =(will there be|do we get|do we expect|expect) (rain|snow|sun|wind|fog|a storm) in {city} {dayw}
    =what (does|will) the (sky|weather|forecast) (say|look like|be like|do) in {city} {dayw}
    =how (is|will) the weather (be|get|turn out|) in {city} {dayw}
    =how will the weather be {dayw}
    =I (want|need) to know the (weather|forecast|temperature) in {city}
    =I (want|need) to know the (weather|forecast) {dayw}
    =what sort of (weather|day) (do they have|will it be|is it) in {city} {dayw}
    (read|find|bring) me the (weather|forecast) (for|in) {city} {dayw}
    (have|take) a look at the weather (in|for) {city}
    (look at|see|pull up) the (weather|forecast) (in|for) {city} {dayw}
    =what's it like outside {dayw}
    =what's it like outside in {city}
    (look into|look up|see about|find out|go over) the (weather|forecast) (for|in) {city}
    =(any|some|much) (wind|sun|fog|storm|hail|ice) (in|near|around) {city} {dayw}
    """,
    "open_app": """
    (open|launch|start|run|show|load|open up|fire up|bring up) {app}
    (open|launch|start|run|show|load|open up|fire up|bring up) the {app} (app|application|program)
    (open|launch|start|run|show|load) (my|the) {app}
    (open|launch|start|run) the (app|application|program) (called|named|) {app}
    (switch|change|jump) to {app}
    (go|switch|change|jump) to the {app} (app|application)
    =I (want|need|would like) to (open|use|see|start) {app}
    =I (want|need|would like) to (open|use|see|start) the {app} app
    =let me (see|use|open) {app}
    =let me (see|use|open) the {app} app
    (show|bring|pull up) me {app}
    ={app} app
    (get|have|put) (the|my|) {app} (app|application) (running|up|launched|loaded|on screen)
    (get|bring) me (into|to) the {app} (app|application)
    (activate|begin|display|enter|access|use) the {app} (app|application)
    (activate|access|enter|display) {app}
    =can you (bring up|show me|get me) the {app} (app|application)
    =I (wish|have) to (open|use|check) the {app} (app|application)
    =let's (open|use|start|see) the {app} app
    =how about the {app} app
    =where is the {app} app, open it
    =the {app} (app|application)
    start up {app}
    open {app} for me
    (get|have|want|see) the {app} (app|application) {done}
    (bring|carry|lead|send|move) me (in|over|across|into|back) to the {app} (app|application)
    =I'd (love|prefer) the {app} (app|application|program)
    """,
    "search_web": """
    (search|look) for {query}
    (search|browse) (the web|the internet|online|google|the net) for {query}
    (google|search) {query}
    (look up|find out|find|research) {query}
    (look up|find|search) {query} (online|on the web|on the internet|on google)
    (do|run|make|start) a (web search|search|google search|quick search) (for|on|about) {query}
    =I (want|need|would like) to (search for|look up|google|search the web for|find out) {query}
    (show|find|get) me (results|web results|pages|search results) (for|about|on) {query}
    (search|look) online for {query}
    =web search {query}
    =(web search|search|google): {query}
    =what does (the web|the internet|google) say about {query}
    (check|look|search) (google|the web|the internet) for {query}
    (find|get) (information|info|something|out) (about|on) {query}
    (use|ask|consult|try) (google|the internet|the net) (to find|for|about) {query}
    (ask|query) (google|the web) {query}
    (go online|go on the web|go to google) and (find|search|look up) {query}
    (please|) find {query} (on|in|using) (google|the internet|the web)
    (begin|do|perform|make|launch) (an|a) (internet|online|web|google) (search|query) (for|about|on|of) {query}
    =let's (search|google|look up|search for) {query}
    =I'm (looking for|searching for|trying to find) {query} (online|on the web)
    =can (the web|you|the internet) (find|tell me|look up) {query}
    =what can you find (online|on the web) about {query}
    =time to (google|look up|search for) {query}
    =help me (google|look up|search for|research) {query}
    (let me|let us) (google|look up|search for) {query}
    web results for {query}
    (have|take|make|give) (a|one) (look|glance|go|query) (online|on the web|on google|on the net) for {query}
    (work|get|employ|go through) the (internet|net|web) to (look up|search|learn about|get) {query}
    =(could|would) (google|the internet|the web) (know|have|show|give me) {query}
    =I'd (love|prefer) to (google|search for|research|find out) {query}
    (begin|make|run|put in) (an internet|a google|an online|a net) (search|query) (about|on|for) {query}
    (dig up|scan the web for|hunt for|type into google) {query}
    """,
    "translate_text": """
    translate {phrase} (to|into|in) {lang}
    translate "{phrase}" (to|into|in) {lang}
    (translate|convert|put|turn) the (phrase|sentence|words|text) {phrase} (to|into) {lang}
    (translate|say|express) {phrase} in {lang}
    (translate|convert) (to|into) {lang}: {phrase}
    (translate|say) (this|the following) (to|into|in) {lang}: {phrase}
    =how (do you|do I|would you|can I|to) say {phrase} in {lang}
    =how (do you|do I|would you|can I|to) say "{phrase}" in {lang}
    =(what is|what's) {phrase} in {lang}
    =(what is|what's) the {lang} (translation of|for|word for|phrase for) {phrase}
    =what does {phrase} mean in {lang}
    (give me|get|find|show me) the {lang} (translation|version) (of|for) {phrase}
    =I (want|need) to say {phrase} in {lang}
    =I (want|need) {phrase} (translated|) (to|into|in) {lang}
    ={lang} (translation|translate|for): {phrase}
    ={phrase} in {lang}
    tell me how to say {phrase} in {lang}
    =how (is|are|would) {phrase} (written|expressed|pronounced|spelled|translated) in {lang}
    =how does one say {phrase} in {lang}
    =how do (people|they) say {phrase} in {lang}
    =tell me what {phrase} (would be|means|sounds like) in {lang}
    =can you tell me what {phrase} means in {lang}
    =I (wonder|want to know) how to say {phrase} in {lang}
    =I (wonder|want to know|need to know) what {phrase} is called in {lang}
    =I'd love to (say|write|tell them) {phrase} in {lang}
    (show me|speak|read|print|type) {phrase} in {lang}
    (change|switch|make) (the words|the phrase|the text) {phrase} (to|into) {lang}
    (give|find|bring) me the {lang} (words|phrase|sentence) for {phrase}
    (look for|search|check) the {lang} (phrase|expression|translation) for {phrase}
    =what would {phrase} be in {lang}
    =what is the {lang} for {phrase}
    =the {lang} (word|translation) for {phrase}
    =how (is|are|was|would|could) {phrase} {done} in {lang}
    =how (is|are|can) "{phrase}" {done} in {lang}
    =how is {phrase} {done} in {lang}
    =how is {phrase} (usually|best|correctly|normally|politely|) {done} in {lang}
    =how are the words {phrase} {done} in {lang}
    =how (can|could|should|must) {phrase} be {done} in {lang}
    =(is|was|can) {phrase} {done} in {lang}
    =(I'd|I would|we'd) like {phrase} {done} in {lang}
    =how (does|would) {phrase} (go|look|sound|read) in {lang}
    =how would (you|one|they|we|people) (put|write|phrase|express|render|word) {phrase} in {lang}
    (see|have|want|get) {phrase} {done} in {lang}
    =(explain|show me|teach me|I forgot) (how|what) {phrase} (sounds|reads|looks like|becomes|goes|translates to) in {lang}
    (read out|spell|speak|shout|sing|print|type|render|phrase|rephrase) {phrase} in {lang}
    =I (must|should|plan to|am trying to|wish to|hope to) (say|write|read|tell her|tell him) {phrase} in {lang}
    (pass me|hand me|tell me|get me|teach me) {phrase} in {lang}
    (turn|switch|translate|bring|render) the (words|line|question|statement|sentence|remark) {phrase} (to|in|into) {lang}
    (see|check|recall|guess|tell me|hunt) the {lang} (name|version|term|expression|wording) (for|of) {phrase}
    =the {lang} (version|wording|term|sentence) of {phrase}
    =(do you know|does anybody know|who knows|I forgot) how to say {phrase} in {lang}
    """,
    "add_to_list": """
    (add|put|write|append|include) {item} (to|on|onto|in) (my|the|our|) {list} list
    (add|put|write|append) {item} (to|on|onto) the list (called|named) {list}
    (add|put|write|append|include) to (my|the|our) {list} list {item}
    (add|put|write|append) to (my|the|our) {list} list: {item}
    (put|note|note down|write down|jot down) {item} on (my|the|our) {list} list
    ={list} list: {item}
    ={item} (to|on|goes on|belongs on) (my|the|our) {list} list
    =I need {item} on (my|the|our) {list} list
    =I (want|need) to (add|put) {item} (to|on) (my|the|our) {list} list
    (update|extend) (my|the|our) {list} list with {item}
    (insert|enter|save|stick) {item} (in|into|on) (my|the|our) {list} list
    (make|take) a note of {item} on (my|the|our) {list} list
    =(don't|do not) forget {item} on (my|the|our) {list} list
    =(my|the|our) {list} list (needs|should have|is missing|should include) {item}
    (get|have|see) {item} (put|placed|noted|written|included) (on|onto|in) (my|the|our) {list} list
    =let's (add|write|have|get) {item} (to|on|onto) (my|the|our) {list} list
    =let us (add|put) {item} (to|on) (my|the|our) {list} list
    =another (one|thing|item) (for|on) (my|the|our) {list} list: {item}
    =something for (my|the|our) {list} list: {item}
    =I'd like to have {item} (on|added on) (my|the|our) {list} list
    (set|drop|throw|leave) {item} (on|onto|in) (my|the|our) {list} list
    (record|register|list|mark|log) {item} (on|in) (my|the|our) {list} list
    =(on|for) (my|the|our) {list} list: {item}
    =can {item} go (on|onto) (my|the|our) {list} list
    =(my|the|our) {list} list (is short of|lacks|could use) {item}
    =we (need|want) {item} on (my|the|our) {list} list
    expand (my|the|our) {list} list (by|with) {item}
    (get|have|see|want) {item} {done} (to|on|onto|in) (my|the|our|) {list} list
    (place|lay|pin|tack|move|sort|scribble|bring) {item} (to|onto|in|under) (my|the|our) {list} list
    =I'd (love|prefer|want) {item} (on|to be on|added to) (my|our|a) {list} list
    =let's (see|keep|place|note|include) {item} (on|in) (my|the) {list} list
    =(something|one thing|a thing|this|next|also) (for|on) (my|the|our) {list} list: {item}
    """,
    "take_photo": """
    (take|snap|shoot|capture|make|click|get) {photo}
    (take|snap|shoot|capture|make|click) {photo} (in|after) {delay}
    (take|snap|shoot|capture|make) {photo} with a {delay1} (timer|delay|countdown)
    =I (want|need|would like) (to take|to snap|to have|to make) {photo}
    =I (want|need|would like) (to take|to snap|to make) {photo} in {delay}
    =let me (take|snap|have) {photo}
    (after|in) {delay} (take|snap) {photo}
    (wait|count) {delay} (and|then|and then) (take|snap|shoot) {photo}
    ={photo}
    ={photo} in {delay}
    =how about {photo}
    =could we (get|do) {photo}
    =we (want|need|would like) {photo}
    =can you (do|get|grab) {photo}
    (get|be) ready to (take|shoot) {photo} in {delay}
    (prepare|set up) {photo} (in|with) {delay}
    =let us (take|have|do) {photo} in {delay}
    (grab|get|do|record|produce) {photo}
    =I'd love {photo}
    =it's time (for|to take) {photo}
    =may I have {photo} (in|after) {delay}
    """,
}

HELD = {
    "set_alarm": """
    =I'd like to (wake up|get up) {when}
    (have|let) the alarm (ring|go off) {when}
    (schedule|add) a wake up alarm {when}
    =please be sure I am awake {when}
    (add|put on) one more alarm for {whenfor}
    =new alarm {when}
    get us up {when}
    """,
    "set_timer": """
    (please|) put {amount} on the timer
    =(remember|see) to beep me after {amount}
    (launch|add) a timer for {amount}
    (set up|begin) a {amount1} countdown
    =I would like a timer of {amount}
    =new timer {amount}
    """,
    "send_message": """
    (deliver|pass) a message to {name} saying {msg}
    =could {name} be told that {msg}
    send word to {name} that {msg}
    (compose|start) a text to {name} that says {msg}
    send {name} this message: {msg}
    =new message to {name}: {msg}
    say to {name} that {msg}
    """,
    "call_contact": """
    (try|start) calling {name}
    =I'd like to (speak to|talk with) {name}
    put a call through to {name}
    (make|do) a quick call to {name}
    =can I talk to {name} {speaker}
    let's (call|phone|ring) {name}
    """,
    "create_event": """
    (fix|set) {a_title} for {whendfor}
    =there is {a_title} {whend}, put it in the calendar
    enter a new event {title} {whend}
    (make|create) a calendar entry {whend} for {title}
    save {title} {whend} in my diary
    (get|have) {a_title} scheduled for {whendfor}
    """,
    "add_reminder": """
    =please remember to remind me to {task} {maybewhen}
    give me a reminder to {task} {maybewhen}
    =I would like a reminder to {task} {maybewhen}
    =(never|don't) allow me to forget to {task} {maybewhen}
    (put|write) a reminder {maybewhen} to {task}
    =new reminder: {task} {maybewhen}
    """,
    "play_music": """
    =I'd like to hear {song} by {artist}
    (find and play|start up) the song {song}
    (give me|let's hear) {song} by {artist}
    play me (some|a few) songs by {artist}
    (get|switch) my {playlist} playlist (started|on)
    (play|put on) the tune {song} by {artist}
    """,
    "set_volume": """
    (take|get) the volume (up|down|) to {level}
    =let the sound be at {level}
    =new volume {level}
    (have|keep) the volume at {level}
    make the sound level {level}
    """,
    "set_brightness": """
    (take|get) the brightness (up|down|) to {level}
    =let the display be at {level}
    =new brightness {level}
    (have|keep) the screen brightness at {level}
    make the display brightness {level}
    """,
    "toggle_setting": """
    get {setting} (turned|switched) {on}
    =I'd like {setting} {on}
    =let {setting} be {on}
    (have|make) {setting} {on}
    =would be nice to have {setting} {on}
    """,
    "navigate_to": """
    =which way to {place}
    =I'd like directions to {place} {mode}
    help me (get|go) to {place}
    (set|open) a route to {place} {mode}
    =what's a good way to get to {place} {mode}
    lead me to {place}
    """,
    "get_weather": """
    =I'd like the forecast for {city} {dayw}
    =how does the weather look in {city} {dayw}
    =what will the weather be {dayw} in {city}
    =any (rain|snow) in {city} {dayw}
    check out the weather for {city}
    =what kind of weather is it in {city} {dayw}
    """,
    "open_app": """
    (get|have) the {app} app (open|started)
    =I'd like the {app} app
    take me to the {app} app
    =please show the {app} application
    (start up|turn on) the {app} app
    """,
    "search_web": """
    (try|have) a search for {query}
    =I'd like to look up {query}
    use the web to find {query}
    =can google find {query}
    (start|open) a web search about {query}
    """,
    "translate_text": """
    =I'd like to say {phrase} in {lang}
    =please tell me what {phrase} is in {lang}
    (write|give me) {phrase} in {lang}
    (find|look up) the {lang} word for {phrase}
    =how is {phrase} said in {lang}
    (make|change) the sentence {phrase} into {lang}
    """,
    "add_to_list": """
    (get|have) {item} added to my {list} list
    =I'd like {item} on the {list} list
    =let's put {item} on our {list} list
    place {item} on the {list} list
    =one more for the {list} list: {item}
    """,
    "take_photo": """
    let's take {photo}
    =I'd like {photo}
    =time for {photo}
    get ready for {photo} in {delay}
    =can we have {photo} in {delay}
    go ahead and shoot {photo}
    """,
}

PREFIX = {
    "imperative": """please|can you|could you|would you|can you please|could you please|would you please|hey, can you|hey, could
    you|please can you|I need you to|I want you to|I'd like you to|go ahead and|just|now|will you|kindly|hey phone, please|
    okay, now|ok, please""",
    "any": """hey|hi|hello|ok|okay|hey there|hey phone|hey assistant|hello there|right|so|well|good morning|excuse me|hi there|
    listen|alright|um|uh|oh""",
}
SUFFIX = [" please", ", please", ", thanks", ", thank you", ", ok?", " for me", " for me please", " thanks", " now", " right now"]
SUFFIX_AFTER_VERBATIM = [", please", ", thanks", ", thank you"]
PREFIX = {k: [" ".join(p.split()) for p in v.split("|")] for k, v in PREFIX.items()}


def lines(table):
    """tool -> list of templates."""
    return {tool: [line.strip() for line in text.strip().splitlines()] for tool, text in table.items()}


TRAIN, HELD = lines(TRAIN), lines(HELD)
