"""Word lists of the demo data, written for this project. `TRAIN` and `HELD` are disjoint by entry; see `check()`."""

FIRST = {
    "train": """Anna Ben Carla David Emma Felix Grace Henry Isla Jack Karen Liam Maria Noah Olivia Peter Quinn Rosa Sam Tina
    Umar Vera Will Xenia Yusuf Zara Adam Bella Chris Diana Erik Fiona George Hannah Ivan Julia Kevin Laura Mark Nina Oscar
    Paula Robert Sarah Tom Ursula Victor Wendy Alex Bob Claire Dan Elena Frank Gina Hugo Irene James Kate Leo Mia Nick Otto
    Pam Ralph Sophie Tim Valerie Walter Amir Bilal Chloe Dmitri Esther Fatima Gustav Hiro Ines Jamal Keiko Lars Mei Nadia
    Omar Priya Rahul Sven Tariq Uma Vikram Wei Yara Zoe John Mary Paul Linda Michael Susan Richard Nancy Steve Betty Joe
    Ruth Luke Amy Ryan Lisa Eric Helen Scott Megan Brian Donna Gary Carol Larry Janet Ahmed Aisha Ali Bruno Cesar Daria
    Enzo Farah Goran Heidi Igor Jana Kofi Lena Marco Nia Pedro Rita Salma Theo Lucy Ellie Max Rob Sally Mike Jenny Dave
    Aunt|Sue Uncle|Bob Doctor|Patel Doctor|Weber Mr|Jones Mrs|Lee José Zoë André Renée Łukasz Jürgen Søren Chloë""",
    "held": """Abigail Boris Cynthia Derek Edith Fabian Gloria Harold Ingrid Jerome Katya Leopold Miranda Nelson Ophelia
    Patrick Ramona Stefan Tamara Ulrich Vanessa Wesley Yolanda Zachary Alberto Brigitte Curtis Dolores Ethan Freya Giorgio
    Hilda Imran Jasmine Kwame Lydia Mustafa Natasha Orlando Philippa Roland Sabrina Thomas Violet Winston Arjun Bianca
    Cedric Delia Edgar Keira Malik Penny Rufus Uncle|Ned Doctor|Morris Mrs|Clark Aunt|May Björn Inès""",
}
LAST = {
    "train": """Smith Miller Brown Garcia Khan Novak Rossi Tanaka Kim Silva Larsen Murphy Schmidt Dubois Costa Singh Chen
    Taylor Walker Young Hill Green Baker Carter Cooper Bailey Reed Stone Fox Hart Lane Marsh Nash Page Shaw Wood""",
    "held": """Anderson Becker Castillo Donovan Eriksen Fischer Gupta Hayes Ito Jensen Kowalski Lopez Moreau Nguyen Osman""",
}
RELATION = {
    "train": """mum dad mom grandma grandpa granny home work brother sister wife husband boss daddy mummy gran uncle aunt cousin son daughter
    partner flatmate boyfriend girlfriend doctor teacher manager""".split(),
    "held": "auntie nan mother papa".split(),
}
PLACE = {
    "train": """Paris London Berlin Madrid Rome Vienna Oslo Dublin Prague Lisbon Tokyo Delhi Cairo Sydney Boston Chicago
    Denver Seattle Houston Miami Toronto Lima Athens Milan Munich Zurich Geneva Brussels Warsaw Bristol Leeds Cardiff York
    Oxford Cambridge Bath Brighton Hamburg Cologne Lyon Nice Naples Seville Porto Krakow Osaka Seoul Mumbai Nairobi Lagos
    Dallas Austin Atlanta Phoenix Detroit Memphis Orlando Santa|Fe San|Diego Los|Angeles New|York New|Delhi Hong|Kong
    Cape|Town Buenos|Aires Rio|de|Janeiro Saint|Petersburg Tel|Aviv Las|Vegas Baker|Street Oak|Avenue Mill|Road
    Station|Road High|Street Green|Park King's|Cross Union|Square Market|Hall Elm|Street Church|Lane West|Gate
    Malmö Zürich Köln""",
    "held": """Glasgow Helsinki Valencia Budapest Stockholm Salzburg Montreal Brisbane Nagoya Portland Florence Antwerp
    Bangkok Kyoto Reykjavik Tallinn Marseille Bologna Utrecht Havana Salt|Lake|City Kuala|Lumpur San|Antonio El|Paso
    Abbey|Road Maple|Drive Castle|Street Victoria|Park Harbour|Bridge North|Gate Göteborg""",
}
SPOT = {  # said with "the"; the answer leaves the article out
    "train": """airport station office school library gym museum hospital bank beach supermarket harbour zoo park mall
    stadium cinema theatre pharmacy bakery hotel town|hall post|office petrol|station train|station bus|stop city|centre
    coffee|shop shopping|centre police|station football|ground swimming|pool""",
    "held": """university cathedral courthouse ferry|terminal car|park market botanical|garden fire|station playground
    concert|hall dentist lighthouse embassy""",
}
WORDS = {
    "train": """apple bread milk butter cheese coffee tea sugar salt rice pasta soup salad onion garlic potato tomato carrot
    banana orange lemon grape peach plum cherry melon chicken beef pork fish egg eggs flour honey jam juice water wine beer
    paper pen pencil book table chair lamp door window wall floor roof house garden tree flower grass leaf river lake sea
    ocean mountain hill valley forest desert island road bridge tunnel tower castle village city country border map key lock
    box bag bottle cup glass plate bowl spoon fork knife phone screen cable battery charger camera radio clock watch ring
    shirt coat hat shoe shoes sock socks glove scarf jacket dress belt soap towel brush comb mirror candle match fire smoke
    ash stone sand clay gold silver iron steel copper glass wood cotton wool silk leather rubber plastic car bus train plane
    boat ship bike truck wheel engine brake seat ticket passport luggage hotel room bed pillow blanket kitchen bathroom
    shower sink oven fridge freezer dog cat horse cow sheep goat pig duck goose bird fish mouse rabbit fox wolf bear lion
    tiger monkey snake frog bee ant spider red blue green yellow black white brown pink purple grey dark light bright warm
    cold hot cool wet dry soft hard heavy empty full open closed new old young big small long short tall wide narrow deep
    high low fast slow early late good bad nice great happy sad angry tired hungry thirsty sick ready busy free quiet loud
    clean dirty cheap dear safe strong weak rich poor sharp round flat sweet sour bitter fresh simple strange secret silent
    golden broken hidden frozen lost wild gentle broad plain sunny rainy cloudy windy snowy morning evening night summer
    winter spring autumn birthday wedding party holiday weekend lesson class exam test report meeting project plan idea
    question answer story song dance film movie game team match score goal race prize money bank bill rent tax price shop
    market store doctor nurse dentist teacher student driver farmer baker cook king queen prince soldier pilot sailor artist
    writer singer player friend brother sister mother father uncle cousin baby child children people man woman boy girl
    heart head hand foot eye ear nose mouth hair skin bone blood dream hope love fear joy luck peace war truth power magic
    music sound voice word name letter number line page list note file photo picture video email message parcel package gift
    present cake cookie sandwich pizza burger breakfast lunch dinner supper snack recipe menu medicine pills vitamin shampoo
    toothpaste tissues nappies detergent sponge bulbs batteries stamps envelopes ink tape glue string rope nails hammer
    drill ladder paint seeds tent torch rain snow wind storm thunder cloud sky sun moon star planet space world earth
    history science physics language grammar museum statue engine software update password account meeting budget invoice
    contract client office desk printer keyboard laptop tablet speaker headphones charger gas electric insurance plumber
    electrician landlord neighbour cleaner boss manager bins rubbish recycling plants laundry dishes carpet curtains lights
    heating boiler alarm gate fence shed bath haircut shift deadline presentation interview homework essay piano guitar
    drums violin yoga football tennis swimming running cycling hiking fishing chess poker""".split(),
    "held": """avocado broccoli cucumber spinach yoghurt almonds walnuts mustard vinegar cinnamon lentils noodles salmon
    tuna sausages bacon pancakes waffles muffins pretzels cardigan umbrella sunglasses sandals wallet backpack suitcase
    sunscreen bandages mosquito spray lantern telescope compass binoculars scissors stapler notebook calendar envelope
    receipt warranty mortgage pension passport visa vaccine bicycle scooter tractor helicopter penguin dolphin elephant
    giraffe squirrel hedgehog turtle parrot crimson turquoise velvet marble crystal thunderbolt meadow glacier volcano
    canyon horizon twilight midnight whisper echo shadow rebel gravity satellite carnival orchestra trumpet cello ballet
    pottery karate badminton rowing sculpture marathon workshop seminar conference rehearsal auction webinar brunch picnic
    barbecue checkup physiotherapist optician accountant plumbing chimney gutters hedge lawn mower greenhouse compost
    aquarium hamster leash kennel daycare tuition scholarship thesis spreadsheet newsletter brochure""".split(),
}
# Words that are also keys or values of tool calls, and more. Only the training split uses them, so the held-out file stays
# as it was.
MORE_WORDS = """time times day days hour hours minute minutes second seconds group phrase number first third front back left right
    south east west top bottom middle side end start percent degree metre kilo dozen pair piece part kind sort way thing
    job work life year month week morning afternoon age size shape colour weight length speed height taste smell noise
    colleague manager coach tutor barber surgeon judge lawyer clerk guide guest host crew crowd tourist nephew niece
    wife husband son daughter twin boss owner tenant captain chief wizard giant dragon ghost angel robot monster clown
    pirate hunter knight uncle aunt walking driving flying singing dancing cooking reading writing painting shopping
    waiting sleeping burning melting rising falling coming going opening closing quickly slowly hardly nearly mostly
    rarely kindly gladly barely simply deeply bravely taxi tram metro van lorry truck jet rocket canoe raft harbour pier
    canal creek pond swamp cliff cave shore coast bay gulf reef dune ridge slope peak plain prairie jungle orchard
    vineyard ranch cabin cottage palace temple chapel museum gallery studio theatre cinema arena court prison barracks
    factory mill mine quarry pipe valve pump motor gear wheel chain bolt screw nut saw axe spade rake basket barrel
    crate jar tin tube roll sheet cloth thread needle button zip pocket collar sleeve boot slipper apron helmet mask
    badge medal ribbon flag banner poster label sticker coupon voucher invoice letter postcard magazine novel poem tale
    legend myth fable riddle joke trick puzzle quiz contest lottery raffle bet bargain pepper basil parsley mint ginger
    cocoa toffee fudge syrup cereal oats wheat barley corn beans peas cabbage celery radish pumpkin olive fig date berry
    raspberry pear apricot mango coconut peanut raisin biscuit cracker bun roll toast omelette stew curry roast pie tart""".split()
APP = {
    "train": """Calendar Camera Maps Mail Photos Notes Clock Calculator Settings Music Contacts Messages Files Browser
    Weather Podcasts Wallet Health Translate Recorder Gallery Chess Sudoku Reader Banking Fitness News Radio Phone|Book
    Voice|Memos Night|Sky Sound|Lab Task|Board Pocket|Chef Bus|Times Photo|Editor Word|Puzzle""".replace("Phone|Book", "Phone"),
    "held": """Compass Stopwatch Magnifier Scanner Solitaire Budget|Planner Recipe|Box Star|Map Crossword Audiobooks
    Thermometer Trail|Finder Keyboard|Trainer Measure""",
}
LANGUAGE = """french german spanish italian dutch polish greek turkish arabic hindi chinese japanese korean russian
portuguese swedish norwegian danish finnish czech hungarian romanian welsh irish swahili""".split()
LISTS = {
    "train": """shopping grocery to-do packing wish birthday party hardware weekend work reading movie christmas holiday
    camping gift baking school cleaning""".split(),
    "held": "errands pharmacy garden picnic supplies household bucket travel".split(),
}
SETTING = {  # canonical name -> spoken forms; the same in both splits
    "wifi": ["wifi", "wi-fi", "the wifi", "wireless", "the wi-fi", "WiFi", "my wifi"],
    "bluetooth": ["bluetooth", "Bluetooth", "the bluetooth", "my bluetooth"],
    "airplane_mode": ["airplane mode", "flight mode", "aeroplane mode", "the airplane mode", "plane mode"],
    "flashlight": ["the flashlight", "the torch", "flashlight", "torch", "my flashlight", "my torch"],
    "dark_mode": ["dark mode", "the dark mode", "night mode", "the dark theme", "dark theme"],
    "do_not_disturb": ["do not disturb", "the do not disturb mode", "do not disturb mode", "silent mode", "quiet mode"],
    "location": ["location", "GPS", "gps", "the location", "location services", "the GPS", "my location"],
    "mobile_data": ["mobile data", "cellular data", "the mobile data", "cellular", "my mobile data"],
    "hotspot": ["the hotspot", "hotspot", "my hotspot", "the personal hotspot", "tethering"],
    "battery_saver": ["battery saver", "power saving", "the battery saver", "power saver", "low power mode"],
    "auto_rotate": ["auto rotate", "rotation", "screen rotation", "auto rotation", "the screen rotation"],
    "nfc": ["NFC", "nfc", "the nfc", "the NFC"],
}
MESSAGE = {
    "train": """
    I (am|will be|might be) (late|there soon|home soon|on my way|busy|at work|a bit late|at the {w})
    (I'm|we're|we are) (running late|on the way|almost there|stuck in traffic|at the {w}|ready|leaving now|home|outside)
    I'll (be there|be home|call you|meet you|pick you up) (soon|later|at {n}|in {n} minutes|tomorrow|after work|at the {w})
    (can you|could you|please) (buy|bring|get|find|send me|pick up) (the|some|a|my) {w}
    (dinner|lunch|breakfast|the {w}|supper) (is|will be) (ready|late|cold|at {n}|great|on the table)
    (happy birthday|congratulations|good luck|thank you|thanks a lot|well done|sorry|good night|good morning)
    (happy birthday|good luck|thanks|sorry) (for|about|with) the {w}
    where (are you|is the {w}|is my {w}|did you put the {w})
    (what|when|how) (is|was) the {w}
    (see you|talk to you|call me) (soon|later|tomorrow|tonight|on friday|at {n}|next week)
    don't forget (the|your|my) {w}
    the {w} (is|was) {w} (and|but) {w}
    the {w} (starts|leaves|opens|arrives|ends) at {n}
    do you (want|need|have|like) (a|the|some|my) {w}
    (let's|we should|shall we) (meet|go|eat|play|walk) (at|to|near|by) the {w}
    I (love|miss|need|want|lost|found|forgot|have) (you|the {w}|my {w}|a {w})
    (yes|no|ok|okay|sure|maybe) {w} {w}
    {w} {w}
    {w} {w} {w}
    {w} {w} {w} {w} {w}
    {p} {p}
    {p} {w} {p} {w}
    the {p} is in the {w}
    {w} to {w} with {p}
    how are you
    hello my friend
    I do not (know|understand|like) the {w}
    my {w} is (on|in|under|at|with) the {w}
    we have {n} {w} for the {w}
    it is too {w} for me
    (that's|that is|this is|it's|it was) (a|the|my|so|very|too|) {w}
    that {w} (is|was|looks) {w}
    what (a|is the|about the) {w}
    (is|are|was|will) the {w} {w}
    (to|in|on|with|for|by|at) the {w}
    (it|he|she|nobody|everybody|somebody) (is|was|will be|has) {w} (in|on|at|for|with) the {w}
    (he|she|they|we) (said|told me|saw|got|made|had|lost) {n} {w}
    {n} to {n} for the {w}
    (one|two|three) {w} and (one|two|three) {w}
    (let|make|keep|give|show|tell|bring|take|get) me (the|a|your) {w}
    your {w} is ready
    thanks for the {w} and the {w}
    could we meet at {n} instead
    there is no {w} in the {w}
    {w} was {w} by {name}
    I (will|would|can|cannot) {w} the {w} (now|then|there|again|today)
    """,
    "held": """
    (the plumber|our guest|your parcel|the taxi) has (just|finally) arrived
    I left the (umbrella|wallet|suitcase|notebook) (in the car|on the train)
    we ran out of (yoghurt|spinach|noodles|cinnamon)
    (the game|the concert|rehearsal) got cancelled
    I passed my driving test
    who is feeding the (hamster|parrot|turtle) today
    the (brunch|picnic|barbecue) was wonderful
    let me know once you land
    (can|could) somebody open the garage
    my flight landed early
    I will explain everything (later|tonight)
    you were right about the (mortgage|visa|receipt)
    (that's|this is) (hilarious|brilliant)
    nobody told me about the (seminar|auction)
    keep me a slice of cake
    we won (three|four) to one
    the keys are under the mat
    it is pouring outside
    bring your (sandals|sunglasses|backpack)
    are you still coming to the (workshop|rehearsal)
    {w} and {w} forever
    """,
}
TASK = {
    "train": """
    (call|phone|email|text|visit|pay|thank|meet|see|ask) (the|my) {w}
    (call|phone|email|visit|meet|ring|pick up) {name}
    (buy|get|order|find|bring|fetch|pick up|sell|return|take back) (the|some|a|more|my|new) {w}
    (buy|get|order|bring) {w}
    (buy|get|order|bring) {w} and {w}
    (clean|wash|fix|check|move|empty|paint|water|feed|lock|open|close|charge|cook|make|iron|fold) the {w}
    (take out|turn off|put away|switch on|hang up|clean up|hand in|look at|tidy up|fill in) the {w}
    (finish|start|write|read|send|print|sign|book|plan|review|study|prepare|post) (the|my|a) {w}
    (take|bring) (the|my) {w} to the {w}
    (go|drive|walk|run|get) to the {w}
    (pay|cancel|renew|book|check|change) (the|my) {w} {w}
    (take|drink|eat) my {w}
    {w} the {p}
    {w} {p} {w}
    {p} the {w}
    {p} {p}
    (stretch|sleep|relax|pray|exercise|leave|pack|study|train|work out)
    """,
    "held": """
    (submit|update|proofread) the (thesis|spreadsheet|newsletter|brochure)
    (collect|repair|inspect) the (bicycle|lawn mower|suitcase|scooter)
    (trim|mow|rake) the (hedge|lawn|meadow)
    renew my (passport|visa|pension)
    (buy|order) (avocado|lentils|bandages|sunscreen|salmon)
    (defrost|marinate|grill) the (salmon|sausages)
    (walk|bathe|groom) the dog
    return the (binoculars|telescope|cardigan)
    (call|meet|email) {name}
    (call|email) the (optician|accountant|physiotherapist)
    apply for the scholarship
    book the (vaccine|checkup)
    clean the (aquarium|kennel|gutters|chimney)
    """,
}
TITLE = {
    "train": """
    (dentist|doctor|haircut|bank|vet|school|eye|job|garage) (appointment|visit|)
    (meeting|lunch|dinner|coffee|call|breakfast|drinks|interview|date|chat) with {name}
    (meeting|lunch|dinner|coffee|call|interview) with the {w} (team|manager|)
    (team|project|board|budget|staff|client|family|sales|weekly|monthly) (meeting|review|call|lunch|dinner|update)
    {w} (class|lesson|practice|meeting|party|training|night|trip|exam|show|session|club)
    {name}'s (birthday|party|wedding|visit|farewell)
    {w} {w}
    {p} {w}
    {p} (meeting|review|party)
    (birthday|dinner|garden|surprise|office) party
    """,
    "held": """
    (optician|physiotherapist|accountant) appointment
    (pottery|karate|badminton|ballet|cello) (class|lesson|practice)
    (brunch|picnic|barbecue|rehearsal) with {name}
    {name}'s (graduation|recital|retirement)
    (marketing|safety|design) (workshop|seminar|conference)
    (book|wine) (club|tasting)
    charity (marathon|auction)
    parent evening
    """,
}
QUERY = {
    "train": """
    (how to|how do I) (make|cook|clean|fix|grow|find|build|draw|cut|wash) (a|the|) {w}
    (cheap|best|good|new|used|free|local|nearest) {w} (near me|in {place}|online|)
    (best|cheap|popular) {w} (and|or) {w}
    (recipe|recipes|ideas|plans|prices|reviews) for {w} {w}
    the (price|history|meaning|colour|size|name) of {w}
    {w} {w}
    {w} {w} {w}
    {p} {w}
    {p} {p}
    {w} (in|near) {place}
    (flights|trains|hotels|buses|jobs|tours) (to|in|from) {place}
    (how tall|how old|how big|how far|how heavy) is (a|the) {w}
    (what is|who is|where is) (a|the|) {p}
    (why|when) (is|does) the {w} {w}
    how many {w} in a {w}
    {w} for {w}
    (news|restaurants|museums) {place}
    """,
    "held": """
    (vegan|homemade) (waffles|pancakes|muffins) recipe
    how to (knit|repair|sharpen) a (cardigan|umbrella|helicopter)
    (symptoms|causes) of (mosquito bites|a broken rib)
    {place} (opening hours|ferry timetable|population)
    who (invented|discovered) the (telescope|compass|vaccine)
    (how deep|how wide) is the (canyon|glacier|volcano)
    (second hand|electric) (scooter|bicycle|tractor)
    lifespan of a (hedgehog|squirrel|dolphin)
    difference between {w} and {w}
    (museum|concert) tickets in {place}
    """,
}
ITEM = {
    "train": """
    {w}
    {w} {w}
    {w} and {w}
    {n} {w}
    (some|more|fresh|frozen|brown|white|new|cheap) {w}
    (a|two|three|one) (box|bag|bottle|pack|bunch|kilo) of {w}
    {p}
    {p} {w}
    (call|buy|clean|paint|fix) the {w}
    """,
    "held": """
    {w}
    {w} {w}
    {w} and {w}
    (dried|organic|smoked|salted) (almonds|tuna|lentils|spinach|bacon)
    (a|two) (jar|crate|dozen) of (mustard|walnuts|vinegar)
    (mosquito spray|paper lantern|spare (helmet|key))
    """,
}
SONG = {
    "train": """
    {W} {W}
    {W}
    The {W} {W}
    {W} of {W}
    {W} in the {W}
    {w} {w} {w}
    {w} {w}
    my {w} {w}
    {P} {W}
    {P}
    (Dancing|Running|Walking|Waiting|Falling) (in|to|for|with) the {W}
    I (Need|Love|Miss|Want) (You|My {W}|the {W})
    """,
    "held": """
    {W} {W}
    {W}
    Beneath the {W}
    {W} (Over|Beyond) the {W}
    (Chasing|Painting) {W}
    (Never|Always) {W}
    a {w} for {name}
    """,
}
ARTIST = {
    "train": "{name}|{name}|The {W}s|The {W} {W}s|{P}|{P} and the {W}s|{W} {W}|{first} and {first}".split("|"),
    "held": "{name}|{name}|The {W}|{first} and the {W}|{W} {W}".split("|"),
}


def entries(text):
    """Splits a list; `|` stands for a space inside an entry."""
    return [entry.replace("|", " ") for entry in text.split()]


for _table in (FIRST, LAST, PLACE, SPOT, APP):
    for _split in ("train", "held"):
        _table[_split] = entries(_table[_split])
for _table in (MESSAGE, TASK, TITLE, QUERY, ITEM, SONG):
    for _split in ("train", "held"):
        _table[_split] = [line.strip() for line in _table[_split].strip().splitlines()]
for _split in ("train", "held"):
    WORDS[_split] = sorted(set(WORDS[_split]))
WORDS["held"] = [word for word in WORDS["held"] if word not in WORDS["train"]]
MORE_WORDS = sorted(set(MORE_WORDS) - set(WORDS["train"]))
PLACE["train"] = [place for place in PLACE["train"] if place != "Orlando"]  # a person in the held-out names


def check():
    """Fails when a name of the held-out split is also one of the training split."""
    for table in (FIRST, LAST, RELATION, PLACE, SPOT, WORDS, APP, LISTS, MESSAGE, TASK, TITLE, QUERY, SONG):
        common = set(table["train"]) & set(table["held"]) - {"{w}", "{W} {W}", "{W}", "{w} {w}"}
        assert not common, common
    held = {word.lower() for table in (FIRST, LAST, RELATION, PLACE, SPOT, WORDS, APP, LISTS) for entry in table["held"] for word in entry.split()}
    shared = {word.lower() for table in (FIRST, LAST, RELATION, PLACE, SPOT, WORDS, APP, LISTS) for entry in table["train"] for word in entry.split()}
    common = set(MORE_WORDS) & (held - shared)
    assert not common, common
